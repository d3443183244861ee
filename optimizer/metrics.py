"""Every metric's name in one place, with kind, unit and meaning; docs/metrics.md is made from it.

    python -m optimizer.metrics > docs/metrics.md

A test compares the two, and another looks for names that are spelt anywhere else.
"""

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


HTTP_REQUESTS: Final = Metric(
    "adloop_http_requests", "counter", "requests", ("route", "method", "status"), "HTTP requests answered"
)
HTTP_REQUEST_SECONDS: Final = Metric(
    "adloop_http_request_seconds", "histogram", "seconds", ("route",), "From the request's header to the answer"
)
DECISIONS: Final = Metric("adloop_decisions", "counter", "decisions", ("source",), "Decisions that were served")
EVENTS: Final = Metric(
    "adloop_events", "counter", "events", ("status", "reason"), "Posted events; no reason when accepted"
)
BAD_RECORDS: Final = Metric(
    "adloop_bad_records", "gauge", "records", (), "Records of the log that serving could not read"
)
REFUSED_VERSIONS: Final = Metric(
    "adloop_refused_versions", "gauge", "versions", (), "Policy versions refused when they went live"
)
LEARNER_HALTED: Final = Metric(
    "adloop_learner_halted", "gauge", "0 or 1", (), "Whether the sentinel has halted learning"
)
LEARNER_HALTED_BY: Final = Metric(
    "adloop_learner_halted_by", "gauge", "0 or 1", ("reason",), "For which reason it has, 1 at that one"
)
LEARNER_UNUSED_OUTCOMES: Final = Metric(
    "adloop_learner_unused_outcomes",
    "gauge",
    "revisions",
    (),
    "Since the learner started, revisions of outcomes that it could not learn from: the campaign is deleted, the text "
    "no longer held, or the draw cannot have been",
)
LEARNER_STALE_REVISIONS: Final = Metric(
    "adloop_learner_stale_revisions",
    "gauge",
    "revisions",
    (),
    "Revisions that changed nothing since the learner no longer held their decision",
)
LEARNER_EVICTED_DECISIONS: Final = Metric(
    "adloop_learner_evicted_decisions",
    "gauge",
    "decisions",
    (),
    "Decisions that the learner no longer holds one by one, but in their text's totals as they last stood",
)
POLICY_KL: Final = Metric(
    "adloop_policy_kl", "gauge", "nats per text", (), "The live version's divergence from the reference"
)
POLICY_KL_STEP: Final = Metric(
    "adloop_policy_kl_step", "gauge", "nats per text", (), "Its divergence from the version before"
)
POLICY_ENTROPY: Final = Metric("adloop_policy_entropy", "gauge", "nats per token", (), "Its entropy")
POLICY_SAMPLES_LENGTH: Final = Metric(
    "adloop_policy_samples_length", "gauge", "ratio", (), "Length of the newest samples over their campaigns' first"
)
POLICY_SAMPLES_DUPLICATES: Final = Metric(
    "adloop_policy_samples_duplicates", "gauge", "share", (), "Newest samples that repeat one of their pool"
)
POLICY_SAMPLES_REJECTED: Final = Metric(
    "adloop_policy_samples_rejected", "gauge", "share", (), "Newest samples that the gate refuses"
)
POLICY_SKIPPED_STEPS: Final = Metric(
    "adloop_policy_skipped_steps", "gauge", "steps", (), "Since the learner started, gradients that were not finite"
)
POLICY_CLIPPED_STEPS: Final = Metric(
    "adloop_policy_clipped_steps", "gauge", "steps", (), "Gradients that were cut to their longest length"
)
POLICY_TEMPERED_STEPS: Final = Metric(
    "adloop_policy_tempered_steps", "gauge", "steps", (), "Steps whose importance ratios a few samples dominated"
)
CRITIC_CLICKS_EXPECTED: Final = Metric(
    "adloop_critic_clicks_expected",
    "gauge",
    "share",
    (),
    "Click rate that the critic expected of recent decisions, before it learnt from them",
)
CRITIC_CLICKS_SEEN: Final = Metric(
    "adloop_critic_clicks_seen", "gauge", "share", (), "Click rate that the same decisions had"
)
CRITIC_BRIER: Final = Metric(
    "adloop_critic_brier", "gauge", "score", (), "Brier score of those predictions; NaN before there are any"
)
CRITIC_BRIER_SKILL: Final = Metric(
    "adloop_critic_brier_skill",
    "gauge",
    "score",
    (),
    "What they gain over always saying the common click rate; 1 at most",
)
ROLE_RESTARTS: Final = Metric(
    "adloop_role_restarts", "gauge", "restarts", (), "Times a role was started again after a fault"
)
OUTCOMES_REMEMBERED: Final = Metric(
    "adloop_outcomes_remembered", "gauge", "decisions", (), "Decisions held in memory for the statistics"
)
OUTCOMES_FORGOTTEN: Final = Metric(
    "adloop_outcomes_forgotten", "gauge", "revisions", (), "Revisions that came too late for the statistics"
)

JOINER_OPEN_DECISIONS: Final = Metric(
    "adloop_joiner_open_decisions",
    "gauge",
    "decisions",
    (),
    "Decisions held since they can still change",
    of_joiner=True,
)
JOINER_LAG: Final = Metric(
    "adloop_joiner_partition_lag_records",
    "gauge",
    "records",
    ("topic", "partition"),
    "Records of a partition that its joiner has not read yet",
    of_joiner=True,
)
JOINER_EVENT_TIME_AGE: Final = Metric(
    "adloop_joiner_event_time_age_seconds",
    "gauge",
    "seconds",
    ("partition",),
    "How far a partition's event time is behind the clock",
    of_joiner=True,
)
JOINER_DELAY: Final = Metric(
    "adloop_joiner_delay_seconds",
    "histogram",
    "seconds",
    (),
    "From an event's receipt to the publishing of the revision that it made",
    of_joiner=True,
)
JOINER_REVISIONS: Final = Metric(
    "adloop_joiner_revisions", "counter", "revisions", (), "Revisions of outcomes fixed for publishing", of_joiner=True
)
JOINER_QUARANTINED: Final = Metric(
    "adloop_joiner_quarantined", "counter", "records", ("reason",), "Records that the joiner refused", of_joiner=True
)
JOINER_CATCH_UP: Final = Metric(
    "adloop_joiner_catch_up_records",
    "gauge",
    "records",
    ("partition",),
    "Records that a rebuild, or a partition taken over, still has to read before it publishes",
    of_joiner=True,
)
JOINER_READY: Final = Metric(
    "adloop_joiner_ready", "gauge", "joiners", (), "1 where every partition has caught up, else 0", of_joiner=True
)

METRICS: Final = tuple(one for one in list(globals().values()) if isinstance(one, Metric))
"""All of the above, in their order."""

PAGE: Final = """# Metrics
What `/metrics` shows, in Prometheus' text format. A counter's name ends with `_total` there, a histogram has `_bucket`,
`_sum` and `_count`. `python -m optimizer.metrics` makes this page, of the table that the code takes the names from.

## Of the server
{server}

## Of a joiner
By `join --metrics-port PORT`, and by the server with `--all`.

{joiner}
"""


def table(metrics: Iterable[Metric] = METRICS) -> str:
    """The metrics as a Markdown table."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | {', '.join(metric.labels) or '-'} | {metric.meaning} |"
        for metric in metrics
    ]
    return "\n".join(["| metric | kind | unit | labels | meaning |", "|---|---|---|---|---|", *rows])


def page() -> str:
    """docs/metrics.md."""
    return PAGE.format(
        server=table(metric for metric in METRICS if not metric.of_joiner),
        joiner=table(metric for metric in METRICS if metric.of_joiner),
    )


if __name__ == "__main__":
    print(page(), end="")
