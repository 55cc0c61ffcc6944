"""Making and measuring a study: init, quantize, measure."""

from __future__ import annotations

from qua2sedimo.commands.app import (
    Arguments,
    Component,
    Configurations,
    Images,
    Keep,
    Model,
    Options,
    Prompts,
    Seed,
    StudyFolder,
    app,
    settings_for,
)


@app.command()
def init(
    model: Model,
    study: StudyFolder,
    prompt: Prompts = None,
    arguments: Arguments = "{}",
    options: Options = "wide",
    images: Images = 16,
    component: Component = None,
    keep: Keep = None,
    seed: Seed = 0,
) -> None:
    """Make a study folder with its study.yaml, to be edited and measured stage by stage."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console

    made = Study.create(study, settings_for(model, prompt, arguments, options, images, component, seed, keep))
    console.print(f"{study / 'study.yaml'}: {len(made.settings.inputs)} inputs. Next: qua2sedimo measure {study}")


@app.command()
def quantize(study: StudyFolder) -> None:
    """Quantize every layer under every option (measure does it by itself); run again, it goes on."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, progress, size

    opened = Study(study)
    with progress() as report:
        opened.build_bank(report)
    nbytes = sum(path.stat().st_size for path in (study / "bank").glob("*.safetensors"))
    options = sum(map(len, opened.space.options.values()))
    console.print(
        f"{options} options of {len(opened.space.layers)} layers in {study / 'bank'}: {size(nbytes)}. "
        f"Next: qua2sedimo measure {study}"
    )


@app.command()
def measure(study: StudyFolder, configurations: Configurations = 100) -> None:
    """Measure random configurations until there are so many; run again, it goes on."""
    from qua2sedimo.study import Study
    from qua2sedimo.terminal import console, progress

    opened = Study(study)
    with progress() as report:
        opened.build_bank(report)
        records = opened.measure(configurations, report)
    objective = opened.objective
    best = max(records, key=objective.gain)
    console.print(
        f"{len(records)} configurations in {study / 'records.db'}; best {objective.text} {objective.value(best):.2f} "
        f"at {best.average_bits:.2f} bits. Next: qua2sedimo fit {study}"
    )
