"""One recipe under several seeds: a run folder each, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from halludecode.core.errors import InvalidParameter
from halludecode.evals.data.run_files import write_json
from halludecode.evals.results.build import Report
from halludecode.evals.results.compare import SeedComparison, compare_seeds
from halludecode.evals.runner.run import prepare, run_setup
from halludecode.evals.runner.run_folder import check_folder, writing

FEWEST = 3  # seeds from which a spread is told


def run_seeds(
    engine_or_loader: Any,
    *,
    seeds: Sequence[int],
    output: str | Path,
    fresh: bool = False,
    progress: bool = True,
    **options: Any,
) -> tuple[SeedComparison, list[Report]]:
    """`run_eval` once for each seed, into ``seed-N`` of the output folder, with one loaded model.

    Args:
        engine_or_loader: As for `run_eval`, as is the rest.
        seeds: At least three different ones.
        output: The folder; ``seeds.json`` in it holds mean, sd and interval of every metric.
        fresh: Start every run over.
        progress: Show progress bars.
        **options: Of `prepare`, but for ``seed``.

    Raises:
        InvalidParameter: Too few seeds, or decoding that has none.
        HalluDecodeError: As `run_eval`.
    """
    if len(set(seeds)) < max(FEWEST, len(seeds)):
        raise InvalidParameter(f"--seeds {list(seeds)}: give {FEWEST} or more different ones.")
    if not options.get("temperature"):
        raise InvalidParameter(
            "--seeds: greedy decoding draws nothing, so every seed gives the same; give "
            "--temperature as well, such as 1."
        )
    output = Path(output)
    check_folder(output)
    setup = prepare(engine_or_loader, seed=seeds[0], **options)
    reports: list[Report] = []
    for seed in seeds:
        sampling = {kind: replace(how, seed=seed) for kind, how in setup.sampling.items()}
        own = replace(setup, seed=seed, sampling=sampling)
        folder = output / f"seed-{seed}"
        reports.append(run_setup(own, folder, fresh=fresh, progress=progress))
    found = compare_seeds([str(report.path) for report in reports])
    with writing(output):
        write_json(output / "seeds.json", found.to_dict())
    return found, reports
