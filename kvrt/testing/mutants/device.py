"""Devices that are wrong about themselves, and those whose one fault is no part's."""

from dataclasses import replace

from kvrt.errors import DeviceError
from kvrt.spi import DeviceInfo
from kvrt.testing.mutants.mutant import Mutant, MutantDevice


class NeverCloses(MutantDevice):
    def close(self) -> None:
        pass


class ClosesOnce(MutantDevice):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise DeviceError("already closed")
        self.closed = True
        super().close()


class SaysTwiceItsGranularity(MutantDevice):
    @property
    def info(self) -> DeviceInfo:
        return replace(self._info, granularity=2 * self._info.granularity)


class SaysHalfItsGranularity(MutantDevice):
    @property
    def info(self) -> DeviceInfo:
        return replace(self._info, granularity=self._info.granularity // 2)


class SaysItHasMore(MutantDevice):
    @property
    def info(self) -> DeviceInfo:
        return replace(self._info, total_bytes=1024 * self._info.total_bytes)


MUTANTS = {
    "says_twice_its_granularity": Mutant(
        "memory::test_a_chunk_is_mapped_where_it_was_asked_to_be", device=SaysTwiceItsGranularity
    ),
    "says_half_its_granularity": Mutant(
        "memory::test_a_chunk_is_mapped_where_it_was_asked_to_be", device=SaysHalfItsGranularity
    ),
    "says_it_has_more": Mutant("memory::test_memory_info_adds_up", device=SaysItHasMore),
    "opens_any_index": Mutant("errors", any_index=True),
    "never_closes": Mutant("lifecycle", device=NeverCloses),
    "closes_once": Mutant("lifecycle", device=ClosesOnce),
}
