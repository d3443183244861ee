"""Worlds in which something depends on how long a run is."""

from __future__ import annotations


class OfLength:
    """Mixed into a world that must know from its start how many arrivals its run has: `impressions`, 20,480 where
    nobody says otherwise. `load_world` says it."""

    impressions = 20_480

    @classmethod
    def lasting(cls, impressions: int) -> type[OfLength]:
        """The same world for runs of that many arrivals."""
        own = {"impressions": impressions, "__module__": cls.__module__, "__doc__": cls.__doc__}
        return type(cls.__name__, (cls,), own)
