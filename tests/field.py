"""Situations out of the public bug reports of PEFT, OpenCompass, transformers, Hydra, submitit and
the like, and the tests that put this project into them. `make field` runs them all.

A test is named by its file, or as `file::name` for all cases of one.
"""

T = "tests/training"
E = "tests/evaluation"

REPORTS: dict[str, list[str]] = {
    # wrong numbers told as right ones
    "autocast stays on a model that was trained": ["tests/pipeline/test_saved.py"],
    "a training that goes on is another one": [
        f"{T}/test_checkpoint.py::test_interrupted_cells_give_the_same_record_and_adapter",
        f"{T}/test_checkpoint.py::test_what_goes_on_is_the_same_in_bfloat16",
        f"{T}/test_checkpoint.py::test_state_that_changes_is_taken_wherever_it_is_and_what_stays_is_not",
        f"{T}/test_checkpoint.py::test_a_checkpoint_of_what_peft_saves_alone_is_not_gone_on_from",
    ],
    "tied weights": ["tests/pipeline/test_tied.py"],
    "starts that do not happen or do not come back": ["tests/pipeline/test_starts.py"],
    "data other than those that were fingerprinted": [f"{E}/test_data_read.py"],
    "float16 on a CPU, weights, logits and losses that are no numbers": [
        f"{T}/test_precision.py",
        f"{E}/test_numbers_only.py",
    ],
    "rows that say nothing, or what Python says": [f"{T}/test_template.py"],
    "templates' ends, dates, dropped answers, places": [
        "tests/cli/test_chat_templates.py",
        "tests/models/test_tokenizers.py",
    ],
    "answers of before a change": [f"{E}/test_answering.py"],
    "answers cut at the length limit": [
        f"{E}/test_journal.py::test_answers_that_end_at_the_length_limit_are_counted",
        f"{E}/test_journal.py::test_a_journal_that_does_not_say_what_was_cut_is_asked_again",
        f"{E}/test_evaluate.py::test_cut_answers_are_in_the_score_and_said",
        "tests/reporting/test_tabulate.py::test_answers_that_were_cut_are_told_below_a_table",
    ],
    "the checkout of another user": ["tests/records/test_code_state.py"],
    # what is read of an answer
    "dresses of a right answer, wrong ones taken for right": [
        f"{E}/reading/test_dresses.py",
        f"{E}/reading/test_reading.py",
    ],
    "answers judged without a model": ["tests/cli/test_judge.py"],
    "a solver that hangs": [f"{E}/reading/test_bounded.py", f"{E}/test_judging.py"],
    # lost or stuck work
    "stray files in a model's folder": ["tests/common/test_fingerprint.py"],
    "SLURM: names of places, held jobs, other squeues, slow clocks": [
        f"tests/sweep/{name}"
        for name in (
            "test_slurm.py::test_a_job_that_slurm_holds_of_itself_is_submitted_anew",
            "test_slurm_jobs.py::test_a_job_that_slurm_holds_again_and_again_is_a_failure",
            "test_slurm.py::test_a_job_that_a_person_holds_is_left_to_itself_when_nothing_moves",
            "test_slurm_jobs.py::test_an_squeue_that_does_not_answer_is_not_waited_for_without_end",
            "test_slurm.py::test_a_place_of_any_name_has_its_jobs_in_it",
            "test_slurm_calls.py::test_a_place_that_slurm_reads_otherwise_is_refused",
            "test_slurm.py::test_a_squeue_without_me_that_greets_is_understood",
            "test_slurm_calls.py::test_a_squeue_that_does_not_answer_is_told_before_anything_is_submitted",
            "test_slurm_jobs.py::test_a_failure_on_a_node_whose_clock_is_behind_is_one_of_this_sweep",
        )
    ],
    # found out before anything is trained, or evaluated after all
    "methods that cannot be merged, or are merged wrongly": ["tests/pipeline/test_merging.py"],
    "models without max_position_embeddings": ["tests/models/test_context.py"],
    "a home that cannot be written": ["tests/pipeline/test_home.py"],
    "ranks of 0, saved embeddings, another precision": ["tests/models/test_adapters.py"],
    "methods that cannot be counted without weights": ["tests/cli/test_more_counts.py"],
    # messages
    "names that Hydra's grammar does not take": [
        "tests/planning/test_config.py::test_values_of_a_file_are_written_as_they_are_there",
        "tests/planning/test_config.py::test_any_text_can_be_quoted",
        "tests/cli/test_evaluate.py",
    ],
    "outputs that are closed, places without fsync": [
        f"tests/cli/test_main.py::{name}"
        for name in (
            "test_outputs_that_are_closed_are_no_mistake",
            "test_what_is_printed_to_a_closed_output_is_in_no_file",
            "test_a_place_without_fsync_takes_whole_files",
            "test_a_folder_that_is_not_for_reading_takes_whole_files",
        )
    ],
}


def is_reported(test: str) -> bool:
    """Whether a test, as pytest names it, is one of the above."""
    file, _, name = test.partition("::")
    return {file, f"{file}::{name.partition('[')[0]}"} & TESTS != set()


TESTS = {test for tests in REPORTS.values() for test in tests}
