"""Places for lines: so many at once, and as many for each owner as for any other."""

import asyncio
import random
from collections import Counter
from math import inf

import pytest

from kvrt.batches import places as module
from kvrt.batches.places import Places


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_every_owner_gets_as_many_places_as_any_other() -> None:
    """However many lines each of them has waiting, and whoever came first."""

    async def asked() -> None:
        places, inside = Places(lambda: 6), Counter[str]()

        async def line(owner: str) -> None:
            await places.enter(owner, 1)
            inside[owner] += 1

        crowd = [asyncio.create_task(line("many")) for _ in range(50)]
        await turns()
        assert inside == {"many": 6}
        crowd += [asyncio.create_task(line(owner)) for owner in ("few", "one") for _ in range(4)]
        await turns()
        for _ in range(4):
            places.leave("many", 1)
            inside["many"] -= 1
            await turns()
        assert inside == {"many": 2, "few": 2, "one": 2}
        for task in crowd:
            task.cancel()

    asyncio.run(asked())


def test_places_are_dealt_by_shares_as_they_are_now() -> None:
    """None is taken away; what comes free goes by the shares of that time."""

    async def asked() -> None:
        shares, inside, room = {"gold": 3}, Counter[str](), [1]
        places = Places(lambda: room[0], lambda owner: shares.get(owner, 1))
        await places.enter("first", 1)

        async def line(owner: str) -> None:
            await places.enter(owner, 1)
            inside[owner] += 1

        def over(owner: str) -> None:
            places.leave(owner, 1)
            inside[owner] -= 1

        crowd = [asyncio.create_task(line(owner)) for _ in range(40) for owner in ("lead", "gold")]
        await turns()
        assert not inside
        room[0] = 9
        places.look()
        await turns()
        assert inside == {"gold": 6, "lead": 2}
        for owner in ("lead", "lead", "gold", "gold"):
            over(owner)
        await turns()
        assert inside == {"gold": 6, "lead": 2}
        shares["lead"] = 3
        for _ in range(2):
            over("gold")
        await turns()
        assert inside == {"gold": 4, "lead": 4}
        for task in crowd:
            task.cancel()

    asyncio.run(asked())


def test_owners_who_have_the_same_take_turns() -> None:
    async def asked() -> list[str]:
        places, order = Places(lambda: 1), list[str]()

        async def line(owner: str) -> None:
            await places.enter(owner, 1)
            order.append(owner)
            await asyncio.sleep(0)
            places.leave(owner, 1)

        async with asyncio.TaskGroup() as lines:
            for owner in "aaabbbcc":
                lines.create_task(line(owner))
        return order

    assert "".join(asyncio.run(asked())) == "aabcabcb"


@pytest.mark.parametrize("seed", range(20))
def test_places_are_never_lost_and_never_too_many(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under lines of any size that are given up at any moment, and room that comes and goes."""
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    rng = random.Random(seed)
    room, inside, sizes = [3], Counter[str](), Counter[str]()

    async def asked() -> None:
        places = Places(lambda: room[0])

        async def line(owner: str, nbytes: int) -> None:
            await places.enter(owner, nbytes)
            inside[owner] += 1
            sizes[owner] += nbytes
            alone = inside.total() == 1
            assert alone or inside.total() <= max(room[0], 1)
            assert alone or sizes.total() <= 10
            try:
                for _ in range(rng.randint(0, 5)):
                    await asyncio.sleep(0)
            finally:
                inside[owner] -= 1
                sizes[owner] -= nbytes
                places.leave(owner, nbytes)

        tasks = []
        for _ in range(120):
            action = rng.random()
            if action < 0.6:
                owner, nbytes = rng.choice("abc"), rng.choice([1, 1, 2, 5, 30])
                tasks.append(asyncio.create_task(line(owner, nbytes)))
            elif action < 0.8 and tasks:
                rng.choice(tasks).cancel()
            elif not inside:
                room[0] = rng.randint(0, 4)
                places.look()
            await asyncio.sleep(0)
        room[0] = 2
        places.look()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [e for e in done if isinstance(e, AssertionError)], done
        assert places.inside == 0

    asyncio.run(asyncio.wait_for(asked(), 60))


def test_of_an_owners_lines_the_higher_priority_comes_first_then_the_earlier_deadline() -> None:
    """Whatever others have: their turns do not depend on it."""

    async def asked() -> list[str]:
        places, order = Places(lambda: 1), list[str]()
        await places.enter("me", 1)

        async def line(name: str, rank: tuple[float, float], owner: str = "me") -> None:
            await places.enter(owner, 1, rank)
            order.append(name)
            places.leave(owner, 1)

        ranks = {"late": (0, 90.0), "soon": (0, 10.0), "never": (0, inf), "high": (-5, inf)}
        tasks = [asyncio.create_task(line(name, rank)) for name, rank in ranks.items()]
        tasks.append(asyncio.create_task(line("other", (7, inf), "you")))
        await turns()
        places.leave("me", 1)
        await asyncio.gather(*tasks)
        return order

    order = asyncio.run(asked())
    assert [name for name in order if name != "other"] == ["high", "soon", "late", "never"]
    assert order.index("other") < 2, "priorities are of one's own lines"
