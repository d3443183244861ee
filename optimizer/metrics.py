"""Every metric's name in one place, with kind, unit and meaning; the table in the documentation is made from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple


class Metric(NamedTuple):
    """One metric as `/metrics` shows it; `unit` is what its value counts. `of_joiner`: where a joiner is,
    so by `join --metrics-port` and by `serving --all`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str
    of_joiner: bool = False


METRICS: Final = (
    # serving
    Metric("adloop_http_requests", "counter", "requests", ("route", "method", "status"), "HTTP requests answered"),
    Metric(
        "adloop_http_request_seconds", "histogram", "seconds", ("route",), "From the request's header to the answer"
    ),
    Metric("adloop_decisions", "counter", "decisions", ("source",), "Decisions that were served"),
    Metric("adloop_events", "counter", "events", ("status", "reason"), "Posted events; no reason when accepted"),
    Metric("adloop_bad_records", "gauge", "records", (), "Records of the log that serving could not read"),
    Metric("adloop_refused_versions", "gauge", "versions", (), "Policy versions refused when they went live"),
    Metric("adloop_learner_halted", "gauge", "0 or 1", (), "Whether the sentinel has halted learning"),
    Metric("adloop_learner_halted_by", "gauge", "0 or 1", ("reason",), "For which reason it has, 1 at that one"),
    Metric(
        "adloop_learner_unused_outcomes",
        "gauge",
        "revisions",
        (),
        "Since the learner started, revisions of outcomes that it could not learn from: the campaign is deleted, the "
        "text no longer held, or the draw cannot have been",
    ),
    Metric(
        "adloop_learner_stale_revisions",
        "gauge",
        "revisions",
        (),
        "Revisions that changed nothing since the learner no longer held their decision",
    ),
    Metric(
        "adloop_learner_evicted_decisions",
        "gauge",
        "decisions",
        (),
        "Decisions that the learner no longer holds one by one, but in their text's totals as they last stood",
    ),
    Metric("adloop_policy_kl", "gauge", "nats per text", (), "The live version's divergence from the reference"),
    Metric("adloop_policy_kl_step", "gauge", "nats per text", (), "Its divergence from the version before"),
    Metric("adloop_policy_entropy", "gauge", "nats per token", (), "Its entropy"),
    Metric(
        "adloop_policy_samples_length", "gauge", "ratio", (), "Length of the newest samples over their campaigns' first"
    ),
    Metric("adloop_policy_samples_duplicates", "gauge", "share", (), "Newest samples that repeat one of their pool"),
    Metric("adloop_policy_samples_rejected", "gauge", "share", (), "Newest samples that the gate refuses"),
    Metric(
        "adloop_policy_skipped_steps", "gauge", "steps", (), "Since the learner started, gradients that were not finite"
    ),
    Metric("adloop_policy_clipped_steps", "gauge", "steps", (), "Gradients that were cut to their longest length"),
    Metric(
        "adloop_policy_tempered_steps", "gauge", "steps", (), "Steps whose importance ratios a few samples dominated"
    ),
    Metric(
        "adloop_critic_clicks_expected",
        "gauge",
        "share",
        (),
        "Click rate that the critic expected of recent decisions, before it learnt from them",
    ),
    Metric("adloop_critic_clicks_seen", "gauge", "share", (), "Click rate that the same decisions had"),
    Metric("adloop_critic_brier", "gauge", "score", (), "Brier score of those predictions; NaN before there are any"),
    Metric(
        "adloop_critic_brier_skill",
        "gauge",
        "score",
        (),
        "What they gain over always saying the common click rate; 1 at most",
    ),
    Metric("adloop_role_restarts", "gauge", "restarts", (), "Times a role was started again after a fault"),
    Metric("adloop_outcomes_remembered", "gauge", "decisions", (), "Decisions held in memory for the statistics"),
    Metric("adloop_outcomes_forgotten", "gauge", "revisions", (), "Revisions that came too late for the statistics"),
    # joiner
    Metric(
        "adloop_joiner_open_decisions",
        "gauge",
        "decisions",
        (),
        "Decisions held since they can still change",
        of_joiner=True,
    ),
    Metric(
        "adloop_joiner_partition_lag_records",
        "gauge",
        "records",
        ("topic", "partition"),
        "Records of a partition that its joiner has not read yet",
        of_joiner=True,
    ),
    Metric(
        "adloop_joiner_event_time_age_seconds",
        "gauge",
        "seconds",
        ("partition",),
        "How far a partition's event time is behind the clock",
        of_joiner=True,
    ),
    Metric(
        "adloop_joiner_delay_seconds",
        "histogram",
        "seconds",
        (),
        "From an event's receipt to the publishing of the revision that it made",
        of_joiner=True,
    ),
    Metric(
        "adloop_joiner_revisions",
        "counter",
        "revisions",
        (),
        "Revisions of outcomes fixed for publishing",
        of_joiner=True,
    ),
    Metric(
        "adloop_joiner_quarantined",
        "counter",
        "records",
        ("reason",),
        "Records that the joiner refused",
        of_joiner=True,
    ),
    Metric(
        "adloop_joiner_catch_up_records",
        "gauge",
        "records",
        ("partition",),
        "Records that a rebuild, or a partition taken over, still has to read before it publishes",
        of_joiner=True,
    ),
    Metric(
        "adloop_joiner_ready", "gauge", "joiners", (), "1 where every partition has caught up, else 0", of_joiner=True
    ),
)


def table(metrics: Iterable[Metric] = METRICS) -> str:
    """The metrics as a Markdown table."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | {', '.join(metric.labels) or '-'} | {metric.meaning} |"
        for metric in metrics
    ]
    return "\n".join(["| metric | kind | unit | labels | meaning |", "|---|---|---|---|---|", *rows])
