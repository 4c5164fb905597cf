"""Where a fleet's sandboxes go: the role `placement`, and that nothing depends on it."""

import signal
import threading
import time

import pytest

from conftest import wait_until
from test_fleet import Fleet, create, fleet, in_parallel, invoke, status  # noqa: F401 (a fixture)

pytestmark = [
    pytest.mark.needs("root", "cgroups", "postgresql"),
    pytest.mark.process_only("the roles do not differ with the kind of sandbox"),
]


def reports(fleet, role):
    """By member, of those that answer."""
    return {m["id"]: m["report"][role] for m in status(fleet)["members"] if m.get("report", {}).get(role)}


def where(fleet, name):
    """How many sandboxes of a function each worker has."""
    def count(worker):
        return sum(of["starting"] + of["idle"] + of["busy"] for of in worker["functions"] if of["function"].endswith(":" + name))

    counts = {id: count(worker) for id, worker in reports(fleet, "worker").items()}
    return {id: n for id, n in counts.items() if n}


def decides(fleet):
    """The member that managers ask, once all workers are known to it; and what it says of itself."""
    def found():
        placements = reports(fleet, "placement")
        [one] = [id for id, p in placements.items() if p["decides"]] or [None]
        return (one, placements[one]) if one and placements[one]["workers"] == 3 else None

    return wait_until(found, timeout=60, what="one placement decides, and hears all workers")


def retire(client, fleet, name):
    """Another version with the same package: what is warm goes, and the next start is cold."""
    timeout = client.get_function_configuration(FunctionName=name)["Timeout"] + 1
    client.update_function_configuration(FunctionName=name, Timeout=timeout)
    client.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 1})
    wait_until(lambda: not where(fleet, name), timeout=30, what=f"the sandboxes of {name} are gone")


# No more of the other roles than it takes, so that a busy machine can run all of them.
LEAN = ["--frontends", "1", "--managers", "1", "--pollers", "0"]


@pytest.mark.parametrize("fleet", [(LEAN, "")], indirect=True)
def test_a_cold_start_goes_where_the_package_is_and_a_function_over_the_workers(fleet):
    client = fleet.client()
    decides(fleet)
    names = ["first", "second", "third"]
    for name in names:
        create(client, name)
        assert invoke(client, name, n=1)["n"] == 1
    before = {name: where(fleet, name) for name in names}
    assert all(len(on) == 1 for on in before.values())
    # Neither who decides nor the manager remembers: what they know from here on the workers have told.
    for name in ("placement-1", "worker-manager-1"):
        fleet.replace(name)
    _, fresh = decides(fleet)
    assert fresh["placed"] == 0 and fresh["sandboxes"] >= 3, "it has heard of sandboxes that it has not placed"
    for name in names:
        retire(client, fleet, name)
        assert invoke(client, name, n=2)["n"] == 2
        assert where(fleet, name).keys() == before[name].keys(), f"{name} has been where its package was not"
    _, after = decides(fleet)
    assert after["placed"] >= 3, "and it was asked"

    # Many at once: over all workers, whether they have the package or not, and then evenly, since all have it.
    in_parallel(12, lambda n: invoke(client, "first", n=n, sleep=1.5))
    assert len(where(fleet, "first")) == 3, where(fleet, "first")
    retire(client, fleet, "first")
    in_parallel(9, lambda n: invoke(client, "first", n=n, sleep=2))
    counts = sorted(where(fleet, "first").values())
    print(f"nine sandboxes at once, on workers that all have the package: {counts}")
    assert len(counts) == 3 and counts[-1] <= counts[0] + 2


@pytest.mark.parametrize("fleet", [([*LEAN, "--placements", "2"], "")], indirect=True)
def test_placement_that_is_killed_costs_no_cold_start(fleet):
    """Each invocation keeps its sandbox busy, so that each is a cold start; and they do not cease while who decides is killed, and
    then the one that stood by."""
    client = fleet.client()
    create(client, "f")
    decider, _ = decides(fleet)
    other = next(id for id in reports(fleet, "placement") if id != decider)
    sandboxes, failures, times = [], [], []
    over = threading.Event()

    def start(n):
        began = time.monotonic()
        try:
            answer = invoke(fleet.client(), "f", n=n, sleep=15)
            assert answer["n"] == n
            sandboxes.append(answer["sandbox"])
            times.append(time.monotonic() - began - 15)
        except Exception as error:
            failures.append(str(error))

    threads = []

    def load():
        while not over.is_set():
            threads.append(threading.Thread(target=start, args=(len(threads),), daemon=True))
            threads[-1].start()
            over.wait(1)

    loading = threading.Thread(target=load, daemon=True)
    loading.start()
    asked = lambda id: (reports(fleet, "placement").get(id) or {"placed": 0})["placed"]
    wait_until(lambda: asked(decider) >= 2, timeout=60, what="the first one is asked")
    fleet.kill(decider)
    wait_until(lambda: asked(other) >= 2, timeout=60, what="the one that stood by is asked")
    # One that hangs is as bad as one that is dead, for as long as it is a member.
    fleet.kill(other, signal.SIGSTOP)
    some = len(threads) + 4
    wait_until(lambda: len(threads) >= some, timeout=60, what="cold starts while it hangs")
    fleet.kill(other)
    some = len(threads) + 4
    wait_until(lambda: len(threads) >= some, timeout=60, what="cold starts without any")
    over.set()
    loading.join(10)
    [thread.join(60) for thread in threads]
    assert not failures, failures[:3]
    assert len(sandboxes) == len(threads), "an invocation hangs"
    # A sandbox that was free again may have been used twice.
    print(f"{len(threads)} invocations, {len(set(sandboxes))} cold starts, {max(times):.2f} s at most")
    assert len(set(sandboxes)) >= 8
    wait_until(lambda: not reports(fleet, "placement"), timeout=60, what="both are out of the fleet")
    create(client, "g")
    assert invoke(client, "g", n=3)["n"] == 3
