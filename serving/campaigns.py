"""What a campaign must satisfy beyond the kinds of its fields, and how one looks in answers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from optimizer.errors import BadInput, FieldError
from optimizer.ids import variant_id
from optimizer.types import Attribution, Campaign, Product, RewardWeights, Rules, Slot
from serving.schemas import CampaignIn
from serving.text import bad_character, banned_term
from serving.wire import shown

# A control may be a blog post: line breaks and tabs belong there, in no other field.
CONTROL_WHITESPACE = "\n\t"
MOST_ERRORS = 100


def campaign_from(tenant: str, campaign_id: str, body: CampaignIn) -> Campaign:
    """The campaign with its defaults filled in. Raises BadInput with the first MOST_ERRORS errors."""
    # A body of a megabyte can have tens of thousands of faults, and a refusal of all of them a hundred megabytes.
    errors = list(islice(_errors(campaign_id, body), MOST_ERRORS))
    if errors:
        raise BadInput(*errors)
    names = [slot.name for slot in body.slots]
    return Campaign(
        campaign_id=campaign_id,
        tenant=tenant,
        product=Product(**msgspec.structs.asdict(body.product)),
        # In the order of the slots, whatever the order was in the request: `text` joins them.
        controls=tuple({name: control[name] for name in names} for control in body.controls),
        audience=body.audience,
        content_type=body.content_type,
        language=body.language,
        segments=body.segments,
        slots=tuple(Slot(slot.name, slot.max_chars) for slot in body.slots),
        rules=Rules(body.rules.banned, body.rules.require_approval),
        reward=RewardWeights(**msgspec.structs.asdict(body.reward)),
        attribution=Attribution(**msgspec.structs.asdict(body.attribution)),
        holdback=body.holdback,
    )


def campaign_body(campaign: Campaign) -> dict[str, Any]:
    """The campaign as answers show it: what was put, and its `campaign_id`."""
    body: dict[str, Any] = msgspec.to_builtins(campaign)
    del body["tenant"], body["schema"]
    return body


def _errors(campaign_id: str, body: CampaignIn) -> Iterator[FieldError]:
    if body.campaign_id is not None and body.campaign_id != campaign_id:
        yield FieldError("campaign_id", shown(body.campaign_id), shown(campaign_id), "leave it out")
    if not body.product.name.strip():
        yield FieldError("product.name", shown(body.product.name), "a name", "name the product")
    yield from _repeated("segments", list(body.segments))
    yield from _repeated("slots", [slot.name for slot in body.slots])
    for field, text in _texts(body):
        if (bad := bad_character(text)) is not None:
            yield FieldError(field, bad, "visible characters", "remove it")
    for index, control in enumerate(body.controls):
        yield from _control_errors(f"controls[{index}]", control, body)
    yield from _repeated("controls", [variant_id(campaign_id, control) for control in body.controls])


def _texts(body: CampaignIn) -> Iterator[tuple[str, str]]:
    """Every free text of the body, but the controls, with its path."""
    product = body.product
    yield from (("product.name", product.name), ("product.brand", product.brand))
    yield from (("product.category", product.category), ("product.price", product.price), ("audience", body.audience))
    yield from ((f"product.facts[{index}]", text) for index, text in enumerate(product.facts))
    yield from ((f"segments[{index}]", text) for index, text in enumerate(body.segments))
    yield from ((f"rules.banned[{index}]", text) for index, text in enumerate(body.rules.banned))


def _control_errors(path: str, control: dict[str, str], body: CampaignIn) -> Iterator[FieldError]:
    limits = {slot.name: slot.max_chars for slot in body.slots}
    for name in sorted(set(control) - set(limits)):
        yield FieldError(f"{path}.{name[:64]}", "an unknown slot", f"one of {', '.join(limits)}", "leave it out")
    for name, limit in limits.items():
        text, field = control.get(name), f"{path}.{name}"
        if text is None:
            yield FieldError(field, "nothing", "a text for every slot", "add it")
        elif not text.strip():
            yield FieldError(field, shown(text), "a text", "write one, or drop the slot")
        elif len(text) > limit:
            yield FieldError(field, f"{len(text)} characters", f"at most {limit}", "shorten it or raise max_chars")
        elif (bad := bad_character(text, CONTROL_WHITESPACE)) is not None:
            yield FieldError(field, bad, "visible characters", "remove it")
        elif (term := banned_term(body.rules.banned, text)) is not None:
            yield FieldError(field, f"the banned term {shown(term)}", "a text without it", "change text or rule")


def _repeated(field: str, values: list[str]) -> Iterator[FieldError]:
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in first:
            yield FieldError(f"{field}[{index}]", f"the same as [{first[value]}]", "each once", "remove the repeat")
        first.setdefault(value, index)
