"""What ``robot-rl reward`` does. Results go to stdout, everything else to stderr; each returns an exit status."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_rl.commands import say
from robot_rl.config import override
from robot_rl.files import disk_errors, write_json
from robot_rl.interrupt import StopSignals
from robot_rl.log import Progress
from robot_rl.reward import classifier as classifiers
from robot_rl.reward.classifier import Classifier
from robot_rl.reward.collect import Act, Plan, append_known, collect, watch
from robot_rl.reward.labels import POSITIVE, LabelSet
from robot_rl.reward.mining import mine, review
from robot_rl.reward.sources import label_as_told, label_by_end, open_source, thin
from robot_rl.reward.training import TrainConfig, figures, fit

if TYPE_CHECKING:
    import gymnasium as gym

    from robot_rl import cli_reward
    from robot_rl.reward.trial import Outcome

_LOOK_S = 2.0  # between two looks for new labels
_NO_CLASSIFIER = ("reward.classifier=", "reward.threshold=none", "reward.hold_steps=none", "reward.review=")


def label(command: cli_reward.Label) -> int:
    """``robot-rl reward label``: prints one JSON object."""
    plays = command.task is not None or command.policy is not None
    if not (command.source or plays or command.review or command.correct):
        raise ValueError("give --source DIR, --task NAME, --policy DIR, --review or --correct: where labels come from")
    if command.mine is not None and not command.source:
        raise ValueError("--mine says which frames of --source to add: give --source DIR as well")
    for name in ("last", "episodes", "positives", "negatives", "count"):
        if getattr(command, name) < 1:
            raise ValueError(f"--{name} {getattr(command, name)}: give at least 1")
    status = 0
    for path in command.source:
        status = status or _label_source(command, path)
    if plays and not status:
        status = _label_episodes(command)
    labels = LabelSet(command.labels)
    for text in command.correct:
        _correct(labels, text)
    if command.review and not status:
        count = review(labels, command.labels.with_suffix(".review.png"), _ask, say)
        say(f"{count} frames reviewed")
    print(json.dumps(LabelSet(command.labels).counts()))
    return status


def _label_source(command: cli_reward.Label, path: Path) -> int:
    source = open_source(path)
    labels = LabelSet(command.labels, source.observation, source.about)
    with StopSignals(say, "this episode") as stop:
        if command.mine is not None:
            found = classifiers.load(command.mine)
            added = mine(found, source, labels, command.count, max(1, command.count // 4), command.yes, stop)
            say(f"{added} frames of failures added" + ("" if command.yes else "; say what they are: --review"))
            return 128 + stop.signum if stop.signum is not None else 0
        held = {origin.key for origin in labels.origins().values()}
        skipped = 0
        for trajectory in source:
            if stop():
                break
            if (trajectory.source, trajectory.episode, trajectory.seed) in held:
                skipped += 1
                continue
            given = (
                label_by_end(trajectory, command.last, command.margin)
                if command.rule == "end"
                else label_as_told(trajectory, command.margin)
            )
            rng = np.random.default_rng([command.seed, trajectory.episode % 2**31])
            kept = thin(given, command.positives, command.negatives, rng)
            append_known(labels, trajectory, kept, f"rule {command.rule}")
        if skipped:
            say(f"{skipped} episodes of {path} were there already")
        return 128 + stop.signum if stop.signum is not None else 0


def _label_episodes(command: cli_reward.Label) -> int:
    from robot_rl.episode import fields_of

    env, policy, about = _world(command, command.world, _NO_CLASSIFIER)
    plan = Plan(command.positives, command.negatives, command.margin)
    try:
        labels = LabelSet(command.labels, fields_of(env.observation_space), about)
        with Progress("labelling", command.episodes) as progress, StopSignals(progress.say) as stop:

            def tell(count: int, counts: Mapping[str, int]) -> None:
                progress.update(count, {name: str(number) for name, number in counts.items()})

            if command.keys is None:
                collect(env, labels, command.episodes, command.seed, policy, plan, command.most_positives, tell, stop)
            else:
                from robot_rl.reward.drivers import driver, open_device

                with open_device(command.keys) as device:
                    act = driver(env, policy, command.person)
                    watch(env, labels, device, act, command.episodes, command.seed, plan, tell, stop)
    finally:
        env.close()
    return 128 + stop.signum if stop.signum is not None else 0


def _correct(labels: LabelSet, text: str) -> None:
    """Take ``ENTRY:STEP=LABEL``."""
    place, equals, value = text.partition("=")
    entry, colon, step = place.partition(":")
    if not (equals and colon and entry.isdigit() and step.isdigit() and value in ("1", "0", "-1")):
        raise ValueError(f"--correct {text}: write it as ENTRY:STEP=LABEL, label one of 1, 0 and -1")
    now = labels.labels()
    if int(entry) not in now:
        raise ValueError(f"--correct {text}: {labels.path} has no entry {entry}")
    at = np.flatnonzero(labels.steps(int(entry)) == int(step))
    if not len(at):
        raise ValueError(f"--correct {text}: entry {entry} has steps {labels.steps(int(entry)).tolist()}")
    changed = now[int(entry)].copy()
    changed[at] = int(value)
    labels.correct(int(entry), changed)


def _ask(question: str) -> str | None:
    """A line from the terminal; None where there is none."""
    if not sys.stdin.isatty():
        raise ValueError("--review asks a person: give the command at a terminal")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline() or None


def train(command: cli_reward.Train) -> int:
    """``robot-rl reward train``: prints the new version's folder and how good it is."""
    config = override(TrainConfig(), sum(command.set, ()))
    labels = LabelSet(command.labels)
    with StopSignals(say, "this version") as stop:
        seen = _fit_version(command, labels, config, stop)
        if command.mine is not None and not stop():
            found = mine(classifiers.load(command.out), open_source(command.mine), labels, 24, 6, command.yes, stop)
            say(
                f"{found} frames of failures added"
                + ("" if command.yes else "; say what they are: reward label --review")
            )
            if found and command.yes:
                seen = _fit_version(command, labels, config, stop)
        while command.follow and not stop():
            if _known(labels) == seen:
                time.sleep(_LOOK_S)
                continue
            seen = _fit_version(command, labels, config, stop)
    return 128 + stop.signum if stop.signum is not None else 0


def _known(labels: LabelSet) -> tuple[int, int]:
    """Changes when a frame gets a label."""
    counts = labels.counts()
    return counts["entries"], counts["positive"] + counts["negative"]


def _fit_version(
    command: cli_reward.Train, labels: LabelSet, config: TrainConfig, stop: Callable[[], bool]
) -> tuple[int, int]:
    """Train and save one version; returns what it has seen of the label set."""
    from robot_rl.run import origin

    seen = _known(labels)
    start = None
    if not command.fresh and classifiers.versions(command.out):
        start = classifiers.load(command.out)
    with Progress("classifier", config.members * config.steps) as progress:
        fitted = fit(
            labels.frames(), labels.observation, config, stop=stop, start=start,
            on_check=lambda step, facts: progress.update(step, {k: f"{v:.3f}" for k, v in facts.items()}),
        )  # fmt: skip
    about = {**fitted.about, "origin": {**origin(), "labels": str(labels.path.resolve()), **labels.about}}
    path = classifiers.save(replace(fitted, about=about), command.out)
    report = about["report"]
    held, threshold = report["held_out"], report["threshold"]
    if command.json:
        print(json.dumps({"version": str(path), **report}))
    else:
        low, high = held["accuracy_interval"]
        print(path)
        say(
            f"held out: {100 * held['accuracy']:.1f} % right ({100 * low:.1f} to {100 * high:.1f}) of "
            f"{held['positive']} + {held['negative']} frames; threshold {threshold['probability']:.3f} with "
            f"{threshold['false_positives']} of {threshold['negatives']} false positives, "
            f"{100 * threshold['recall']:.0f} % recall"
        )
    if threshold["episode_rate_bound"] > config.false_positives:
        say(
            f"so few negatives cannot show that less than {100 * config.false_positives:g} % of episodes have a false "
            f"positive: see for yourself, robot-rl reward eval {command.out} --task NAME"
        )
    return seen


def evaluate(command: cli_reward.Eval) -> int:
    """``robot-rl reward eval``: prints one JSON object."""
    found = classifiers.load(command.classifier)
    if command.labels is None and command.task is None and command.policy is None:
        raise ValueError("give --labels DIR, --task NAME or --policy DIR: what to try the classifier on")
    folder = found.path.parent
    out = command.out or folder / f"eval-{found.version:06d}"
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"classifier": str(found.path), "version": found.version}
    if command.labels is not None:
        report["labels"] = _on_labels(found, LabelSet(command.labels), out)
    if command.task is not None or command.policy is not None:
        report["episodes"] = _on_episodes(command, found, out)
    write_json(out / "report.json", report)
    print(json.dumps(report))
    return 0


def _on_labels(found: Classifier, labels: LabelSet, out: Path) -> dict[str, Any]:
    from robot_rl.reward.pictures import draw_reliability, draw_sheet

    if different := found.difference(labels.observation):
        raise ValueError(f"{labels.path} holds other observations than {found.path} reads: {different}")
    frames = labels.frames(found.preprocessing.names)
    trained_on = {tuple(key) for key in found.about.get("trained_on", ())}
    fresh = [index for index, key in enumerate(frames.episodes) if key not in trained_on]
    frames = frames.take(np.isin(frames.episode, fresh))
    if not len(frames):
        raise ValueError(f"{found.path} was trained on every episode of {labels.path}: give labels of others")
    probability = found.probabilities(frames.observation)
    positive = frames.label == POSITIVE
    draw_reliability(probability, positive, found.threshold, out / "reliability.png")
    negative = np.flatnonzero(~positive)
    worst = negative[np.argsort(-probability[negative], kind="stable")][:24]
    pictures = {image.name: frames.observation[image.name][worst] for image in found.preprocessing.images}
    captions = [f"{probability[i]:.2f}  entry {frames.entry[i]}, step {frames.step[i]}" for i in worst]
    title = f"Negatives with the highest probability (threshold {found.threshold:.2f})"
    draw_sheet(pictures, captions, title, out / "worst.png")
    counts = {"episodes": len(frames.keys), "positive": int(positive.sum()), "negative": len(negative)}
    return counts | figures(probability, frames.label, found.threshold)


def _on_episodes(command: cli_reward.Eval, found: Classifier, out: Path) -> dict[str, Any]:
    from robot_rl.reward.pictures import draw_sheet
    from robot_rl.reward.trial import play_trial, summary

    settings = (*_NO_CLASSIFIER, f"reward.classifier={found.path}")
    env, policy, about = _world(command, "sim", settings)
    try:
        with Progress("fresh episodes", command.episodes) as progress, StopSignals(progress.say) as stop:

            def tell(outcomes: list[Outcome]) -> None:
                wrong = sum(outcome.false_positive for outcome in outcomes)
                progress.update(len(outcomes), {"false positives": str(wrong)})

            outcomes = play_trial(env, command.episodes, command.seed, policy, tell, stop)
    finally:
        env.close()
    wrong = [outcome for outcome in outcomes if outcome.false_positive][:24]
    names = [image.name for image in found.preprocessing.images]
    sheet = out / "false_positives.png"
    sheet.unlink(missing_ok=True)
    if wrong and names:
        pictures = {name: np.stack([outcome.obs[name] for outcome in wrong]) for name in names}
        captions = [f"{o.probability:.2f}  {o.kind}, step {o.steps}" for o in wrong]
        draw_sheet(pictures, captions, f"False positives in {len(outcomes)} fresh episodes", sheet)
    return about | summary(outcomes)


def _world(
    command: cli_reward.Label | cli_reward.Eval, world: str, own: tuple[str, ...]
) -> tuple[gym.Env, Callable[[int], Act] | None, dict[str, str]]:
    """The environment to play in, who plays (None: the task's expert), and what it is. ``own`` settings come last but
    for those of the command."""
    from robot_rl import build, evaluate, rig
    from robot_rl.run import load_agent

    given = sum(command.set, ())
    if command.policy is not None:
        if command.task is not None:
            raise ValueError("--policy DIR has a task of its own: leave out --task")
        run, env, encoder, agent = load_agent(command.policy, settings=(*own, *given))
        about = {"task": run.task, "arm": run.arm, "world": run.world}
        return env, lambda seed: evaluate.policy(agent, encoder, seed), about
    assert command.task is not None
    settings = rig.words(getattr(command, "rig", None), command.arm, world, (*own, *given))
    made = build.make_env(command.task, command.arm, world, settings)
    return made, None, {"task": command.task, "arm": command.arm, "world": world}
