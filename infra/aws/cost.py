#!/usr/bin/env python3
"""What a million calls cost: the fleet of epsilon.yaml, one machine, and Lambda's list price beside them.

    infra/aws/cost.py                                   the tables of docs/cost.md
    infra/aws/cost.py --set vm_hour=0.16 --set vm_used=0.6       with your own prices and assumptions
    infra/aws/cost.py --list                            what can be set, with its value and meaning

A model, not a bill: every number below is an assumption with a name. The tests do its arithmetic by hand.
"""

import argparse
import dataclasses

HOURS = 730  # a month, as AWS counts
SECONDS = HOURS * 3600


def setting(value, meaning):
    return dataclasses.field(default=value, metadata={"meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Settings:
    # List prices in dollars, us-east-1, on demand, Linux, without tax; as of 2026, to be checked before deciding by them.
    vm_hour: float = setting(0.2016, "a VM: m7i.xlarge, 4 cores, 16 GiB")
    gateway_hour: float = setting(0.08925, "a gateway: c7i.large")
    builder_hour: float = setting(0.1008, "the builder, and the one machine of `epsilon up`: m7i.large, 2 cores, 8 GiB")
    alb_hour: float = setting(0.0225, "the load balancer")
    lcu_hour: float = setting(0.008, "a unit of its load: 25 new connections a second or 1 GB an hour")
    nlb_hour: float = setting(0.0225, "the load balancer of the control address")
    nat_hour: float = setting(0.045, "the NAT gateway")
    database_hour: float = setting(0.064, "the database: db.t4g.small, Multi-AZ")
    database_gb: float = setting(0.23, "a GB of its storage for a month, Multi-AZ")
    disk_gb: float = setting(0.08, "a GB of a machine's disk for a month, gp3")
    address_hour: float = setting(0.005, "a public IPv4 address")
    secret: float = setting(0.40, "a secret for a month")
    log_gb: float = setting(0.50, "a GB of logs taken in")
    lambda_request: float = setting(0.20e-6, "one request to Lambda")
    lambda_gb_second: float = setting(0.0000166667, "Lambda's GB-second, x86, first tier")
    http_api_request: float = setting(1.00e-6, "one request through API Gateway's HTTP API, where Lambda is called through one")
    commitment: float = setting(0.27, "what a year's commitment takes off EC2's price (Savings Plan, nothing up front)")
    # Assumptions about the fleet.
    gateways: float = setting(2, "gateways")
    vm_min: float = setting(2, "fewest VMs")
    vm_cores: float = setting(4, "cores of a VM")
    vm_gib: float = setting(16, "memory of a VM")
    memory_share: float = setting(0.8, "share of it that instances may have (`vm_agent.memory`)")
    vm_used: float = setting(0.4, "share of all places that is busy in the mean of a month: headroom, nights and boots")
    vm_disk: float = setting(60, "GB of a VM's and the builder's disk")
    gateway_disk: float = setting(20, "GB of a gateway's disk")
    database_storage: float = setting(20, "GB of the database's storage")
    secrets: float = setting(7, "secrets")
    log_bytes: float = setting(50, "bytes of the programs' logs for a call")
    # Assumptions about calls.
    answer_kib: float = setting(10, "KiB of request and answer together")
    new_connections: float = setting(0.2, "share of calls that come on a new connection")
    one_used: float = setting(0.25, "share of its places that the one machine may have busy in the mean; peaks are higher")


@dataclasses.dataclass(frozen=True)
class Calls:
    """What is called: how long a call takes, the memory of its function, how many such calls a core serves at once, and
    how many share one instance (`concurrency`; on Lambda it is always one)."""

    name: str
    seconds: float
    mib: float
    per_core: float = 8
    together: int = 1


KINDS = [
    Calls("small: 50 ms, 128 MiB", 0.05, 128),
    Calls("typical: 200 ms, 256 MiB", 0.2, 256),
    Calls("heavy: 1 s, 1 GiB", 1.0, 1024),
    Calls("waiting: 1 s for others, 256 MiB, 20 in one instance", 1.0, 256, per_core=100, together=20),
]
MONTHS = [1e6, 10e6, 100e6, 1000e6]


def places(s, calls, cores, gib):
    """Calls at once that a machine has room for, by its memory and by its cores."""
    return min(gib * s.memory_share * 1024 // calls.mib * calls.together, cores * calls.per_core)


def busy(calls, number):
    """Calls that run at the same time, in the mean of a month."""
    return number * calls.seconds / SECONDS


def vms(s, calls, number):
    """VMs in the mean of a month."""
    return max(s.vm_min, busy(calls, number) / (places(s, calls, s.vm_cores, s.vm_gib) * s.vm_used))


def per_call(s):
    """What the load balancer and the logs take for a call, whatever it does."""
    gb = s.answer_kib * 1024 / 1e9
    # The load balancer charges for the larger of the two, an hour's worth of each unit.
    lcu = max(s.new_connections / 25 / 3600, gb) * s.lcu_hour
    return lcu + s.log_bytes / 1e9 * s.log_gb


def fleet(s, calls, number, off=0.0):
    """A month of the fleet. `off`: the share that a commitment takes off the machines."""
    vm = vms(s, calls, number)
    machines = (vm * s.vm_hour + s.gateways * s.gateway_hour + s.builder_hour) * (1 - off)
    around = s.alb_hour + s.nlb_hour + s.nat_hour + s.database_hour + 3 * s.address_hour  # two of the ALB, one of NAT
    disks = ((vm + 1) * s.vm_disk + s.gateways * s.gateway_disk) * s.disk_gb + s.database_storage * s.database_gb
    return (machines + around) * HOURS + disks + s.secrets * s.secret + number * per_call(s)


def one(s, calls, number):
    """A month of one machine with `epsilon up` and a public address; None where it is too small."""
    if busy(calls, number) > places(s, calls, 2, 8) * s.one_used:
        return None
    return (s.builder_hour + s.address_hour) * HOURS + s.vm_disk * s.disk_gb


def on_lambda(s, calls, number):
    """A month of Lambda alone, called by a function URL, which is free."""
    return number * (s.lambda_request + calls.seconds * calls.mib / 1024 * s.lambda_gb_second)


def on_lambda_with_api(s, calls, number):
    """The same through API Gateway's HTTP API, where a function URL is not enough."""
    return on_lambda(s, calls, number) + number * s.http_api_request


def break_even(ours, theirs, s, calls):
    """Calls a month from which on `ours` costs less than `theirs`; None if that never comes."""
    low, high = 0.0, 1e12
    if ours(s, calls, high) >= theirs(s, calls, high):
        return None
    # Both grow with the number, ours in steps not steeper than its last one: one crossing.
    while high - low > high * 1e-6:
        middle = (low + high) / 2
        if ours(s, calls, middle) < theirs(s, calls, middle):
            high = middle
        else:
            low = middle
    return high


def dollars(value):
    return "–" if value is None else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def tables(s):
    lines = [
        "| calls | a month | VMs (mean) | fleet | fleet, committed | one machine | Lambda | Lambda + HTTP API |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for calls in KINDS:
        for number in MONTHS:
            million = number / 1e6
            single = one(s, calls, number)
            costs = [fleet(s, calls, number), fleet(s, calls, number, s.commitment), single, on_lambda(s, calls, number),
                     on_lambda_with_api(s, calls, number)]
            shown = " | ".join(dollars(None if cost is None else cost / million) for cost in costs)
            lines.append(f"| {calls.name} | {million:,.0f} M | {vms(s, calls, number):,.1f} | {shown} |")
    def committed(settings, kind, number):
        return fleet(settings, kind, number, settings.commitment)

    lines += ["", "| calls | fleet below Lambda from | committed, below Lambda | committed, below Lambda + HTTP API |",
              "|---|---:|---:|---:|"]
    for calls in KINDS:
        points = [break_even(fleet, on_lambda, s, calls), break_even(committed, on_lambda, s, calls),
                  break_even(committed, on_lambda_with_api, s, calls)]
        shown = " | ".join("never" if at is None else f"{at / 1e6:,.0f} M ({at / SECONDS:,.0f} a second)" for at in points)
        lines.append(f"| {calls.name} | {shown} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    changed = {}
    for word in given.set:
        name, _, value = word.partition("=")
        if name not in fields:
            parser.error(f"`{name}` is not known; --list shows what is")
        changed[name] = float(value)
    settings = Settings(**changed)
    if given.list:
        for name, field in fields.items():
            print(f"{name:18} {getattr(settings, name):>14.10g}   {field.metadata['meaning']}")
        return
    print(tables(settings))


if __name__ == "__main__":
    main()
