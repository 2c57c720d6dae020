"""What docs/reliability.md tells beside our own evidence: targets, limits with their reasons, and what was seen of others.

Rules for editing: a limit says what happens, why it cannot be otherwise, and what the user can do; it goes when it is lifted. What is
said of other programs names the version and what was done to it, and nothing that was not measured or read in its source.
"""

from __future__ import annotations

from typing import NamedTuple


class Limit(NamedTuple):
    """Something that cannot be survived."""

    what: str
    why: str
    instead: str


class Seen(NamedTuple):
    """What another program did under a fault."""

    program: str
    done: str
    came: str
    how: str  # measured, or read in the source


#: Situation of a recovery, as its evidence names it → seconds that p99 may take.
TARGETS: dict[str, float] = {
    "standing by, same machine": 3.0,
    "started again": 3.0,
    "standing by, another machine": 12.0,
}

LIMITS = (
    Limit(
        "A host's disk dies, or the host is wiped",
        "what was not fetched yet was nowhere else",
        "the next attempt goes on from the newest checkpoint in the object store; let the tool write them often enough",
    ),
    Limit(
        "A reboot of the host, or of its container, ends the step",
        "processes do not survive it, and starting the step again by itself would be a second start",
        "the next attempt resumes from the newest checkpoint",
    ),
    Limit(
        "Power loss of the host between a write and its sync",
        "the supervisor syncs its claim, exit code and incarnation; a log's last seconds are with the kernel",
        "the step is told as lost and the next attempt resumes; only SIGKILL and restarts were tried, not a power cut",
    ),
    Limit(
        "The supervisor and all shells of a step are killed at the same moment",
        "nobody is left who saw the exit code, and nobody to stop what ran on",
        "the step is told as `lost`; what still runs of it is found by its mark and ended by a stop",
    ),
    Limit(
        "A process that left its session and cleaned its environment",
        "nothing ties it to the step any more: neither session, parent, nor mark",
        "it is not stopped with the step; a rented machine is destroyed with it",
    ),
    Limit(
        "A host that lies: about an exit code, or with a file's content and digest alike",
        "the host computes both; nothing outside can tell",
        "our side stays unharmed (paths, sizes, digests are checked); do not train on machines that you must not believe",
    ),
    Limit(
        "A cancel, `max_hours` or `max_cost` while a borrowed host cannot be reached",
        "nobody can reach the step; waiting for ever would keep the job from ending",
        "after 15 minutes the job ends, and says so; the step runs until the host stops it: deadline over, an hour without a word",
    ),
    Limit(
        "A borrowed host that stays away longer than a minute when its job is given up keeps the job's folders",
        "they are no danger and cost no money",
        "`rm -r` of the attempt's folder below the root, or leave it",
    ),
    Limit(
        "No worker until `max_hours` is over and an hour beyond",
        "the host stops the step then, so that a forgotten job does not spend for ever",
        "the attempt counts as lost; keep a worker running",
    ),
    Limit(
        "No worker ever again while a machine is rented",
        "nobody is there to give it back",
        "it ends itself half an hour after its last step, or six hours where outputs would be lost; where it cannot, Vast.ai's own "
        "scheduler destroys it at a full hour, two to three hours after the job's limits; without limits it does not",
    ),
    Limit(
        "Two live copies of one virtual machine: same host name, boot id and process ids",
        "a worker of the one passes for a dead process of the other",
        "its leases are taken and its writes refused, so nothing is lost or doubled; do not clone a machine that runs a worker",
    ),
    Limit(
        "The machine's clock goes wrong under an embedded store",
        "leases run by it: set an hour forward they run out at once, set back they last an hour longer",
        "tokens keep two workers apart all the same; a dead worker of the same machine is noticed without the clock",
    ),
    Limit(
        "A database that forgets what it acknowledged: a network file system under SQLite, a restored backup",
        "the store is the truth; what it forgot never was",
        "a local disk; `w: majority, j: true` is asked of MongoDB; start no worker on a restored store whose jobs still run elsewhere",
    ),
    Limit(
        "A defect of ours in the rules themselves",
        "a job that cannot be decided is not moved",
        "it stands still with a note, its machine is kept, limits and cancel still work",
    ),
)

_DSTACK = "dstack 0.22.5, server with SSH fleet, protocol stub for its agent"
_AIIDA = "AiiDA 2.9.4, `core.ssh`"
_JOBFLOW = "jobflow-remote 1.0.1 on a Mongo-protocol database"
_AIRFLOW = "Airflow 3.3.2 `SSHRemoteJobOperator`, providers-ssh 7.0.1"
_SKYPILOT = "SkyPilot 0.14.1, managed jobs"
_ONETRAINER = "OneTrainer, cloud tab, 2026-08-19"

OTHERS = (
    Seen(
        _DSTACK,
        "host cut off from the server for good, job healthy",
        "failed as unreachable after 145 s; the process went on and was never adopted again",
        "measured",
    ),
    Seen(
        _DSTACK,
        "server killed while a job printed 200 lines, started again 1 s later, twice",
        "200 of 200 lines, one start; next log line after 2.7 s and 13.0 s",
        "measured",
    ),
    Seen(
        _DSTACK,
        "an answer to a request to rent is lost",
        "the next offer is rented and the first machine is not looked for",
        "read",
    ),
    Seen(
        _AIIDA, "20 jobs, 6 random kills of the daemon", "20 done, 2 of them started more than once (2 and 3 times)", "measured"
    ),
    Seen(_AIIDA, "daemon killed 1.5 s and 6 s after a submit", "both done, one start each", "measured"),
    Seen(_AIIDA, "host cut off", "five tries with growing pauses from 20 s, then paused until a human comes", "read"),
    Seen(
        _JOBFLOW,
        "20 jobs, 6 random kills of the runner",
        "18 done, 2 stuck behind a lock that lasts a day; no double start",
        "measured",
    ),
    Seen(_JOBFLOW, "host cut off", "retries after 30, 300 and 1,200 s, then an error that a human must clear", "read"),
    Seen(
        _AIRFLOW,
        "a step writes 2.7 MB at once and exits 0",
        "12,773 of 400,000 lines kept (3 %), task marked as a success",
        "measured",
    ),
    Seen(_AIRFLOW, "host cut off", "five failed connections, about a minute, then the task fails; the process goes on", "read"),
    Seen(
        _AIRFLOW,
        "the trigger's process is replaced",
        "the log is read from byte 0 again; a retry starts a second process",
        "read",
    ),
    Seen(
        _SKYPILOT,
        "status of a healthy cluster cannot be had for one to two minutes",
        "cancelled and launched again; a user reported 24 launches in 19 h",
        "read",
    ),
    Seen(_SKYPILOT, "a job succeeds while its cluster cannot be reached", "run again", "read"),
    Seen(
        _ONETRAINER,
        "client gone when the training ends",
        "the rented machine deletes itself when nobody has read its callback for 10 s",
        "read",
    ),
    Seen(_ONETRAINER, "deleting the rented machine fails", "the error is swallowed; the machine goes on costing", "read"),
)
