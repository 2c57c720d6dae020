#!/bin/sh
# Host supervisor of remote_trainer, protocol 1: starts each step of a job at most once, keeps its log and its exit code.
#
# It is one file because it is copied to machines that have nothing yet, and POSIX sh because a step may be the one that installs
# Python. docs/supervisor.md describes the verbs, the states and the folder; this file is the truth when they differ.
#
# The one idea: a step is started by making a hard link named "claim", and the process whose link succeeds is the process that
# becomes the step's command. link(2) fails when the name exists and shows its content whole, so there is no lock to leave behind
# and no instant at which a crash could start a step twice. Cancelling a step takes the same link.
#
# Rules for editing:
#   - POSIX sh only; the same tests run under dash, bash in POSIX mode, and busybox with nothing but its own applets on PATH.
#   - Whatever others read as truth (claim, exit, cmd) appears by link or rename, after fsync. Nothing else does.
#   - No `local` in POSIX: NAMES IN CAPITALS are set for the caller, _names are scratch and die with the next call.
#   - Replace this file on a host by rename only: a shell reads its script as it goes.

set -u
umask 077 # logs and secrets are nobody else's business; the step itself gets 022 back

case $0 in /*) SELF=$0 ;; *) SELF=$PWD/$0 ;; esac
RT_ROOT=${RT_ROOT:-$HOME/.rt}

PROTOCOL=1
EX_NO_SPACE=28
EX_BUSY=73
EX_NOT_YET=74
EX_FENCED=75
EX_OTHER_INCARNATION=76
EX_NO_STEP=77
EX_USAGE=78
EX_HOST_LACKS=79
LOST_RACE=213 # exit code of a command process that did not win the claim; seen by its supervisor only

FOLLOWER_SILENCE=120 # seconds without a ping after which a follower takes its client for dead
CLAIM_WAIT=25        # looks (0.2 s apart) that `follow` takes for the claim of a step that is being started

# --- words ------------------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }

die() { # CODE MESSAGE...
    _code=$1
    shift
    printf 'E %s\n' "$*" >&2
    exit "$_code"
}

have() { command -v "$1" >/dev/null 2>&1; }

flag() { if have "$1"; then say 1; else say 0; fi; }

# For tests only: RT_FP=NAME kills this process at the point NAME; RT_FP=NAME@FILE makes FILE.reached there and waits for FILE.
fail_point() {
    case ${RT_FP:-} in
        "$1") kill -9 $$ ;;
        "$1@"*)
            true >"${RT_FP#*@}.reached"
            until [ -e "${RT_FP#*@}" ]; do sleep 0.02; done
            ;;
    esac
}

# --- arguments: names become paths and end up in `[ ]` and `$(( ))`, so nothing unusual gets in ------------------------------------

check_name() { # WHAT VALUE
    case $2 in
        '' | [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*) die $EX_USAGE "$1 is not a name of letters, digits, dot, dash and underscore: '$2'" ;;
    esac
    [ ${#2} -le 120 ] || die $EX_USAGE "$1 is longer than 120 characters"
}

is_number() { # a leading zero would be read as octal
    case $1 in
        0) return 0 ;;
        '' | 0* | *[!0-9]*) return 1 ;;
    esac
    [ ${#1} -le 18 ]
}

check_number() { # WHAT VALUE
    is_number "$2" || die $EX_USAGE "$1 is not a whole number: '$2'"
}

need() { # COUNT USAGE GIVEN
    [ "$3" -ge "$1" ] || die $EX_USAGE "usage: $2"
}

use_job() { # JOB
    check_name JOB "$1"
    JOB_NAME=$1
    JOB=$RT_ROOT/j/$1
    WITNESSES=$RT_ROOT/c/$1
}

use_step() { # JOB STEP
    use_job "$1"
    check_name STEP "$2"
    STEP_NAME=$2
    STEP=$JOB/s/$2
}

# --- files ------------------------------------------------------------------------------------------------------------------

# attempt COMMAND...: keeps what it says in PROBLEM. The C locale because give_up reads the message.
attempt() {
    PROBLEM=$(LC_ALL=C "$@" 2>&1)
}

is_full() { # PROBLEM
    case $1 in *'No space left'* | *uota\ exceeded*) return 0 ;; esac
    return 1
}

why_failed() { # prints the exit code for PROBLEM and a message, on one line
    _last=$(printf '%s\n' "$PROBLEM" | grep -v 'records \|bytes' | tail -n 1)
    if is_full "$PROBLEM"; then
        say "$EX_NO_SPACE no space left on the host's disk: $1"
    else
        say "$EX_HOST_LACKS cannot write $1: $_last"
    fi
}

give_up() { # WHAT
    _reason=$(why_failed "$1")
    die "${_reason%% *}" "${_reason#* }"
}

write_synced() { # FILE, content on stdin; not atomic
    attempt dd of="$1" bs=65536 conv=fsync && return 0
    rm -f "$1"
    return 1
}

# put FILE TEXT: FILE appears whole and on disk, or not at all.
put() {
    PROBLEM=$(printf '%s\n' "$2" | LC_ALL=C dd of="$1.t$$" conv=fsync 2>&1) && attempt mv -f "$1.t$$" "$1" && return 0
    rm -f "$1.t$$"
    return 1
}

# reserve FILE: room for one line, taken while there is some, so that a full disk cannot swallow an exit code later.
reserve() {
    put "$1" "$(printf '%255s' '')"
}

# fill RESERVED FILE TEXT: overwrites the reserved room in place and gives it its name. Read it back with first_line.
fill() {
    PROBLEM=$(printf '%s\n' "$3" | LC_ALL=C dd of="$1" conv=notrunc,fsync 2>&1) && attempt mv -f "$1" "$2"
}

first_line() { # FILE -> LINE; false when there is no line
    LINE=''
    { read -r LINE <"$1"; } 2>/dev/null && [ -n "$LINE" ]
}

sync_folders() {
    sync "$@" 2>/dev/null || sync
}

make_folders() {
    attempt mkdir -p "$@" || give_up "$*"
}

now() { date +%s; }

# Seconds since boot. Time that passes is measured with this: the clock of a fresh machine jumps when NTP reaches it.
read_uptime() {
    read -r UPTIME _ </proc/uptime
    UPTIME=${UPTIME%%.*}
}

changed_at() { stat -c %Y "$1" 2>/dev/null; }

# `true`, not `:`, because a failed redirection of a special built-in ends the shell.
renew_lease() { true 2>/dev/null >"$JOB/lease"; }

# --- processes ----------------------------------------------------------------------------------------------------------------

# look_at PID -> P_STATE P_PARENT P_GROUP P_START; false when there is no such process.
look_at() {
    _stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The program's name stands in brackets and may hold spaces and brackets: fields are counted from the last bracket.
    # shellcheck disable=SC2086 # split into fields on purpose
    set -- ${_stat##*) }
    [ $# -ge 20 ] || return 1
    P_STATE=$1 P_PARENT=$2 P_GROUP=$3 P_START=${20}
}

# alive PID START: a pid alone is reused, with its start time (in ticks since boot) it is unique within one boot.
alive() {
    look_at "$1" || return 1
    case $P_STATE in Z | X) return 1 ;; esac
    [ "$P_START" = "$2" ]
}

# read_boot -> BOOT. A restarted container keeps the boot id of its host; only the start time of its pid 1 tells.
read_boot() {
    BOOT=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null) || BOOT=-
    if look_at 1; then BOOT=$BOOT/$P_START; else BOOT=$BOOT/-; fi
}

# A pid is not given out again while a group of that number has members. So when the number belongs to a process with another
# start time, the step's group is empty and a group of this number is somebody else's. When it belongs to no process, a stranger may
# have had it, and left a group, since the supervisor was killed: then only a member with our mark proves that the group is ours.
group_is_ours() {
    if look_at "$C_PID"; then
        [ "$P_START" = "$C_START" ]
        return
    fi
    supervisor_alive && return
    for _pid in $(marked_members); do
        look_at "$_pid" && [ "$P_GROUP" = "$C_PID" ] && return
    done
    return 1
}

# Free of charge, and the kernel misses nobody. But it counts zombies, which pid 1 of a container may never collect.
group_exists() { kill -0 "-$C_PID" 2>/dev/null; }

group_members() {
    group_exists && group_is_ours && grep -ls ") [^ZX] [0-9]* $C_PID " /proc/[0-9]*/stat | sed 's,/proc/,,;s,/stat,,'
}

# Every process of a step inherits RT_MARK; this finds those that left the group with setsid. The colons at both ends of the mark
# keep nonce "n1" from matching "n10", and the root from ending what was started from another root of this machine.
mark() { say ":$JOB_NAME/$STEP_NAME/$C_NONCE:$RT_ROOT:"; }

# Processes with a text in their environment. Not with grep -F: that of some busyboxes sees nothing behind the first variable.
marked() { # TEXT
    LC_ALL=C grep -ls "$(say "$1" | sed 's/[][\.*^$]/\\&/g')" /proc/[0-9]*/environ | sed 's,/proc/,,;s,/environ,,'
}

marked_members() { marked "RT_MARK=$(mark)"; }

has_members() {
    [ -n "$(group_members)" ] || [ -n "$(marked_members)" ]
}

# signal_step SIGNAL...: each process once, the group as a whole and then those outside. The list is made before the group is
# signalled: a process that leaves the group in between must not get a second TERM, which many programs take for "do not save".
# The group is signalled without a look at who is in it: the kernel misses nobody, a look may miss one that forks and exits.
signal_step() {
    _leavers=''
    for _pid in $(marked_members); do
        look_at "$_pid" && [ "$P_GROUP" != "$C_PID" ] && _leavers="$_leavers $_pid"
    done
    for _signal in "$@"; do
        group_is_ours && kill "-$_signal" "-$C_PID" 2>/dev/null
        for _pid in $_leavers; do kill "-$_signal" "$_pid" 2>/dev/null; done
    done
}

# The grace asked for by the latest `stop`, so that a second, more impatient one shortens the wait; else the default.
grace_now() { # DEFAULT
    if first_line "$ATTEMPT/stop" && is_number "$LINE"; then say "$LINE"; else say "$1"; fi
}

# end_step GRACE: TERM once, grace, then STOP and KILL until two looks in a row find nobody. STOP first: a fork loop outruns KILL.
# The TERM goes with the name term.r: of all that ever end this step only one can take it away, also after a crash or on a full disk.
end_step() {
    group_exists || [ -n "$(marked_members)" ] || return 0
    if has_members && attempt mv "$ATTEMPT/term.r" "$ATTEMPT/term"; then
        signal_step TERM CONT # a stopped process would never see the TERM
    fi
    _fifths=0
    while [ $_fifths -lt $((5 * $(grace_now "$1"))) ] && has_members; do
        sleep 0.2
        _fifths=$((_fifths + 1))
    done
    _empty=0 _tries=0
    while [ $_empty -lt 2 ] && [ $_tries -lt 200 ]; do
        _tries=$((_tries + 1))
        signal_step STOP KILL
        if has_members; then
            _empty=0
            sleep 0.05
        else
            _empty=$((_empty + 1))
        fi
    done
}

# --- fence, incarnation, claim, state --------------------------------------------------------------------------------------------

# The highest fence ever seen is the largest folder name. Folders, because mkdir needs no lock and two of them cannot overwrite
# each other; zero-padded, because a glob sorts by text.
pad() { printf '%020d' "$1"; }

read_highest_fence() { # -> HIGHEST
    set -- "$JOB"/fence/[0-9]*
    eval "HIGHEST=\${$#}"
    HIGHEST=${HIGHEST##*/}
    case $HIGHEST in '['*) HIGHEST=0 ;; esac
}

take_fence() { # FENCE
    check_number FENCE "$1"
    if ! attempt mkdir -p "$JOB/fence/$(pad "$1")"; then
        { is_full "$PROBLEM" && raise_fence "$(pad "$1")"; } || give_up "$JOB/fence/$(pad "$1")"
    fi
    read_highest_fence
    [ "$(pad "$1")" = "$HIGHEST" ] || die $EX_FENCED "fenced: $1 is older than $HIGHEST"
}

# raise_fence NAME: a full disk has no room for another folder, but a rename needs none, and whoever takes over must be able to stop
# the step that filled it. What is renamed is lower than its new name, so the highest fence never falls, whoever else does the same.
# A look during a rename may show neither name; that only sends an owner away that is fenced anyway, or here to another look.
raise_fence() {
    _tries=0
    while [ $_tries -lt 20 ]; do
        _tries=$((_tries + 1))
        read_highest_fence
        [ "$HIGHEST" != 0 ] || return 1
        [ "$HIGHEST" -lt "$1" ] 2>/dev/null || return 0
        # Should NAME have come up meanwhile, this moves one into the other, which changes nothing.
        mv "$JOB/fence/$HIGHEST" "$JOB/fence/$1" 2>/dev/null
    done
    return 1
}

check_incarnation() { # INC
    first_line "$RT_ROOT/inc" || LINE=none
    [ "$LINE" = "$1" ] || die $EX_OTHER_INCARNATION "this host is not the one it was: incarnation $LINE, not $1"
}

# read_claim -> CLAIM C_NONCE C_FENCE C_PID C_START C_BOOT ATTEMPT; false when nobody has claimed the step.
# A claim that cannot be read says that there was a start and nothing else about it: nonce "unknown", which is a lost step.
# Where a step has removed the folder of its own job, the witness tells of the start.
read_claim() {
    C_NONCE='' C_FENCE='' C_PID='' C_START='' C_BOOT='' CLAIM=''
    _claim=$STEP/claim
    [ -e "$_claim" ] || _claim=$WITNESSES/$STEP_NAME
    [ -e "$_claim" ] || return 1
    first_line "$_claim" && CLAIM=$LINE
    for _word in $CLAIM; do
        case $_word in
            n=*) C_NONCE=${_word#n=} ;;
            f=*) C_FENCE=${_word#f=} ;;
            pid=*) C_PID=${_word#pid=} ;;
            st=*) C_START=${_word#st=} ;;
            id=*) C_BOOT=${_word#id=} ;;
        esac
    done
    if [ "$C_NONCE" != cancelled ] && { ! is_number "$C_PID" || ! is_number "$C_START" || [ -z "$C_BOOT" ]; }; then
        C_NONCE=unknown CLAIM=n=unknown
    fi
    ATTEMPT=$STEP/a.$C_NONCE
}

read_size() { # -> SIZE of the log in bytes
    SIZE=$(wc -c 2>/dev/null <"$ATTEMPT/log") || SIZE=0
    SIZE=$((SIZE))
}

read_exit() { # -> STATE; false when the supervisor has not written how the step ended
    first_line "$ATTEMPT/exit" || return 1
    case $LINE in code=[0-9]*\ size=[0-9]*) STATE="exited $LINE" ;; *) return 1 ;; esac
}

supervisor_alive() {
    first_line "$ATTEMPT/sup" || return 1
    alive "${LINE% *}" "${LINE#* }"
}

# read_state -> STATE. The order of the looks matters: the supervisor writes `exit` before it goes, so `exit` is looked for once
# more after the supervisor was found to be gone.
read_state() {
    if ! read_claim; then
        STATE=none
    elif [ "$C_NONCE" = cancelled ]; then
        STATE="cancelled f=$C_FENCE"
    elif [ "$C_NONCE" = unknown ]; then
        STATE='lost why=supervisor size=0'
    elif ! read_exit; then
        read_boot
        read_size
        if [ "$C_BOOT" != "$BOOT" ]; then
            STATE="lost why=reboot size=$SIZE"
        elif supervisor_alive; then
            STATE="running size=$SIZE"
        elif ! read_exit; then
            read_state_without_supervisor
        fi
    fi
}

# Somebody killed the supervisor. While a process of the step lives the log may still grow, so the step has not ended.
read_state_without_supervisor() { # -> STATE
    if has_members; then
        read_size
        STATE="orphan size=$SIZE"
        return
    fi
    read_size
    if first_line "$ATTEMPT/code" && is_number "$LINE"; then
        STATE="exited code=$LINE size=$SIZE t=$(changed_at "$ATTEMPT/code") why=supervisor"
    else
        STATE="lost why=supervisor size=$SIZE"
    fi
}

# --- init -------------------------------------------------------------------------------------------------------------------------

lacks() { die $EX_HOST_LACKS "the host lacks $*"; }

# Tries everything the protocol rests on, in the very folder it will use: a network mount may refuse hard links or fsync.
try_host() {
    for _tool in cat date dd df find grep id ln mkdir mv rm sed setsid sha256sum sleep stat sync tail touch tr uname wc; do
        have $_tool || lacks "the program $_tool"
    done
    if [ ! -r /proc/uptime ] || ! look_at $$; then lacks 'a readable /proc'; fi
    case $(now) in '' | *[!0-9]*) lacks 'a clock (date +%s)' ;; esac
    sleep 0.01 2>/dev/null || lacks 'a sleep that takes fractions of a second'
    _try=$RT_ROOT/try.$$
    rm -rf "$_try"
    attempt mkdir "$_try" || give_up "$RT_ROOT"
    _missing=$(try_folder "$_try") || _missing=${_missing:-'a file system that works'}
    rm -rf "$_try"
    case $_missing in
        '') ;;
        [0-9]*) die "${_missing%% *}" "${_missing#* }" ;;
        *) lacks "$_missing" ;;
    esac
}

try_folder() { # FOLDER; prints what is missing
    put "$1/a" x || { why_failed "$RT_ROOT" && return; }
    ln "$1/a" "$1/b" 2>/dev/null || { say "hard links in $RT_ROOT" && return; }
    if ln "$1/a" "$1/b" 2>/dev/null; then say "hard links that respect an existing name in $RT_ROOT"; fi
    [ -n "$(changed_at "$1/a")" ] || say 'stat -c %Y'
    setsid true 2>/dev/null || say 'a setsid that works'
}

fact() { say "fact $*"; }

flock_works() { # network mounts may not know it
    if have flock && flock "$RT_ROOT/inc" true 2>/dev/null; then say 1; else say 0; fi
}

sha256_tool() {
    for _tool in openssl sha256sum shasum; do # fastest first
        have $_tool && say $_tool && return
    done
    say none
}

# What a process may use, not what the machine has: a container sees all of the host's memory in /proc/meminfo.
memory_bytes() {
    _kb=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
    _bytes=$((${_kb:-0} * 1024))
    for _file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
        first_line "$_file" && is_number "$LINE" && [ "$LINE" -lt "$_bytes" ] && _bytes=$LINE
    done
    say "$_bytes"
}

print_gpus() { # one fact per GPU: index, name (spaces become _), memory in MiB, driver
    have nvidia-smi || return 0
    _limit='timeout 20' # a broken driver makes nvidia-smi hang
    have timeout || _limit=''
    $_limit nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader,nounits 2>/dev/null |
        sed 's/ *, */,/g;s/ /_/g' | tr ',' ' ' | while read -r _gpu; do fact gpu "$_gpu"; done
}

print_facts() {
    read_boot
    fact protocol $PROTOCOL
    fact boot "$BOOT"
    # shellcheck disable=SC2046 # split into fields on purpose
    set -- $(df -Pk "$RT_ROOT" | tail -n 1)
    fact disk_total $(($2 * 1024))
    fact disk_free $(($4 * 1024))
    fact mem_total "$(memory_bytes)"
    fact cpus "$(nproc 2>/dev/null || grep -c ^processor /proc/cpuinfo)"
    fact kernel "$(uname -r)"
    fact arch "$(uname -m)"
    fact uid "$(id -u)"
    fact shell "$(readlink /proc/$$/exe || say sh)"
    fact home "${HOME:-/}"
    for _tool in rsync python3 tar zstd; do fact have_$_tool "$(flag $_tool)"; done
    fact have_flock "$(flock_works)"
    fact have_sha256 "$(sha256_tool)"
    print_gpus
}

verb_init() { # INC
    need 1 'init INC' $#
    check_name INC "$1"
    case $RT_ROOT in *[[:cntrl:]]*) die $EX_USAGE 'the name of the root has control characters' ;; esac # a mark is one line
    make_folders "$RT_ROOT/j"
    try_host
    if ! first_line "$RT_ROOT/inc"; then
        put "$RT_ROOT/inc.$$" "$1" || give_up "$RT_ROOT/inc"
        ln "$RT_ROOT/inc.$$" "$RT_ROOT/inc" 2>/dev/null # the first one stays
        rm -f "$RT_ROOT/inc.$$"
        sync_folders "$RT_ROOT"
        first_line "$RT_ROOT/inc" || die $EX_NO_SPACE 'the incarnation could not be written'
    fi
    say "inc $LINE"
    print_facts
}

# --- start ------------------------------------------------------------------------------------------------------------------------

verb_prep() { # JOB STEP [SIZE], the script on stdin; with SIZE, an upload cut short by a lost connection is refused
    need 2 'prep JOB STEP [SIZE]' $#
    use_step "$1" "$2"
    [ $# -lt 3 ] || check_number SIZE "$3"
    make_folders "$STEP" "$JOB/fence"
    if [ ! -s "$STEP/cmd" ]; then
        write_synced "$STEP/cmd.$$" || give_up "$STEP/cmd"
        _got=$(wc -c <"$STEP/cmd.$$")
        if [ "$((_got))" -ne "${3:-$((_got))}" ] || [ "$((_got))" -eq 0 ]; then
            rm -f "$STEP/cmd.$$"
            die $EX_USAGE "the script came in with $((_got)) of ${3:-?} bytes"
        fi
        attempt mv -f "$STEP/cmd.$$" "$STEP/cmd" || give_up "$STEP/cmd"
    fi
    say ok
}

verb_launch() { # JOB STEP FENCE INC NONCE GRACE DEADMAN SCRIPT: prep and start in one round trip
    need 8 'launch JOB STEP FENCE INC NONCE GRACE DEADMAN SCRIPT' $#
    use_step "$1" "$2"
    [ -n "$8" ] || die $EX_USAGE 'the script is empty'
    check_incarnation "$4" # before anything is written: on a wiped host nothing may look like a start
    take_fence "$3"
    make_folders "$STEP"
    [ -s "$STEP/cmd" ] || put "$STEP/cmd" "$8" || give_up "$STEP/cmd"
    verb_start "$1" "$2" "$3" "$4" "$5" "$6" "$7"
}

# Idempotent: the second start of a step reports the first. The reply comes when the claim is on disk, not when the step ends.
verb_start() { # JOB STEP FENCE INC NONCE GRACE DEADMAN
    need 7 'start JOB STEP FENCE INC NONCE GRACE DEADMAN' $#
    use_step "$1" "$2"
    check_name INC "$4"
    check_name NONCE "$5"
    case $5 in cancelled | unknown) die $EX_USAGE "the nonce $5 is reserved" ;; esac
    check_number GRACE "$6"
    check_number DEADMAN "$7"
    check_incarnation "$4"
    take_fence "$3"
    [ -s "$STEP/cmd" ] || die $EX_NO_STEP "no such step: $1 $2"
    renew_lease || die $EX_NO_SPACE "no space left on the host's disk: $JOB/lease"
    if read_claim; then
        report_start adopted
        return
    fi
    make_folders "$JOB/w" "$WITNESSES"
    fail_point start.prepared
    if ! attempt mkdir "$STEP/a.$5"; then
        [ -d "$STEP/a.$5" ] || give_up "$STEP/a.$5"
        read_claim || die $EX_NOT_YET "a start with the nonce $5 is under way or has failed; ask again with a new one"
        report_start adopted
        return
    fi
    fail_point start.mkdir
    if ! attempt touch "$STEP/a.$5/sup.log"; then
        rm -rf "$STEP/a.$5"
        give_up "$STEP/a.$5"
    fi
    # Both the supervisor and the command hold the other end of this pipe (fd 3) until the claim is made or given up.
    _reply=$(exec 3>&1 && { setsid sh "$SELF" __supervise "$1" "$2" "$3" "$5" "$6" "$7" </dev/null >/dev/null 2>"$STEP/a.$5/sup.log" & })
    fail_point start.spawned
    if read_claim; then
        if [ "$C_NONCE" = "$5" ]; then report_start started; else report_start adopted; fi
        return
    fi
    case $_reply in
        [0-9]*\ *) die "${_reply%% *}" "${_reply#* }" ;;
        *) die $EX_NOT_YET 'not started; ask again with a new nonce' ;;
    esac
}

report_start() { # VERDICT
    read_state
    say "$1 $CLAIM | $STATE"
}

# Secrets lie beside the step for the moment between this call and the start. Lines NAME=BASE64, the last line a single dot: without
# it a lost connection could leave half of them behind unnoticed.
verb_secrets() { # JOB STEP, secrets on stdin
    need 2 'secrets JOB STEP' $#
    use_step "$1" "$2"
    have base64 || lacks 'the program base64'
    make_folders "$STEP"
    write_synced "$STEP/secrets.$$" || give_up "$STEP/secrets"
    if [ "$(tail -n 1 "$STEP/secrets.$$")" != . ]; then
        rm -f "$STEP/secrets.$$"
        die $EX_USAGE 'the list of secrets ended early: its last line must be a single dot'
    fi
    if grep -v '^[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9+/=]*$' "$STEP/secrets.$$" | grep -vx '\.' >/dev/null; then
        rm -f "$STEP/secrets.$$"
        die $EX_USAGE 'a secret is not of the form NAME=BASE64'
    fi
    if read_claim; then rm -f "$STEP/secrets.$$"; else mv -f "$STEP/secrets.$$" "$STEP/secrets"; fi
    say ok
}

# --- the supervisor: parent of one command, in a session of its own ------------------------------------------------------------------

tell_starter() { # "CODE MESSAGE", read by verb_start
    say "$1" >&3
    exit 1
}

verb___supervise() { # JOB STEP FENCE NONCE GRACE DEADMAN
    use_step "$1" "$2"
    ATTEMPT=$STEP/a.$4 C_NONCE=$4 GRACE=$5
    look_at $$
    SUP_START=$P_START
    if ! put "$ATTEMPT/sup" "$$ $SUP_START" || ! reserve "$ATTEMPT/exit.r" || ! reserve "$ATTEMPT/code.r" ||
        ! attempt touch "$ATTEMPT/log" "$ATTEMPT/lock" "$ATTEMPT/term.r"; then
        _reason=$(why_failed "$ATTEMPT")
        rm -rf "$ATTEMPT"
        tell_starter "$_reason"
    fi
    # Followers wait for this lock: the kernel frees it however the supervisor ends, which saves them from polling.
    exec 9>"$ATTEMPT/lock"
    have flock && flock -n 9
    fail_point sup.pre
    C_PID='' C_START='' ENDED='' STOPPER='' INTERRUPTED='' WATCHER=''
    trap begin_stop TERM # before the command exists: it may be claimed, and stopped, at once
    RT_MARK=$(mark)
    export RT_MARK
    become_session "$@" </dev/null >>"$ATTEMPT/log" 2>&1 &
    C_PID=$!
    unset RT_MARK
    look_at "$C_PID" && C_START=$P_START
    exec 3>&-
    [ -z "$INTERRUPTED" ] || begin_stop
    trap '' HUP INT # now, lest the command inherit it
    fail_point sup.forked
    if [ "$6" -gt 0 ]; then
        (exec 9>&- && watch_lease "$6") &
        WATCHER=$!
    fi
    await_command
    if ! read_claim || [ "$C_NONCE" != "$4" ]; then
        rm -rf "${STEP:?}/a.$4" # another starter or a cancel was first: leave nothing
    else
        finish
    fi
    [ -z "$WATCHER" ] || kill "$WATCHER" 2>/dev/null
}

# In the background process itself, so that the pid the supervisor waits for is the one that makes the claim.
become_session() { # JOB STEP FENCE NONCE ...
    exec 9>&-
    export RT_JOB="$1" RT_STEP="$2" RT_WORK="$JOB/w"
    exec setsid sh "$SELF" __command "$1" "$2" "$3" "$4"
}

# The work is done beside the wait, so that the command's exit code is taken the moment it ends. A stopper that was killed is replaced.
begin_stop() {
    INTERRUPTED=1
    if [ -z "$C_PID" ] || [ -n "$ENDED" ] || stopper_lives; then return; fi
    (exec 9>&- && trap '' TERM && end_step "$GRACE") &
    STOPPER=$!
}

# In a subshell, because a trap may come between a look and the use of what was seen.
stopper_lives() {
    [ -n "$STOPPER" ] && (look_at "$STOPPER" && [ "$P_PARENT" = $$ ] && [ "$P_STATE" != Z ])
}

# await_command -> CODE. A signal makes `wait` return 143 although the command lives on; and a signal that comes just as the command
# ends makes the next `wait` say 127, "no such child", or in bash 255: then the second witness knows.
await_command() {
    CODE=''
    while :; do
        INTERRUPTED=0
        wait "$C_PID"
        _code=$?
        if [ $INTERRUPTED = 1 ] && look_at "$C_PID" && [ "$P_START" = "${C_START:-$P_START}" ]; then continue; fi
        if [ $_code != 127 ] || [ -z "$CODE" ]; then CODE=$_code; fi
        [ $INTERRUPTED = 0 ] && break
    done
    case $CODE in 127 | 255) first_line "$ATTEMPT/code" && is_number "$LINE" && CODE=$LINE ;; esac
    ENDED=1
}

# Ends what the command left behind, so that the log is final, and only then says how the step ended.
finish() {
    fail_point sup.exited
    while stopper_lives; do wait "$STOPPER"; done
    end_step "$GRACE"
    rm -f "$STEP/secrets"
    read_size
    first_line "$ATTEMPT/why"
    _end="code=$CODE size=$SIZE t=$(now) why=$LINE"
    fail_point sup.preput
    until fill "$ATTEMPT/exit.r" "$ATTEMPT/exit" "$_end"; do
        [ -d "$ATTEMPT" ] || return # cleaned away under us: there is nobody to tell
        sleep 2 & # the disk is full and not even the reserved room could be written: space may come back
        wait $!
    done
    fail_point sup.put
    sync_folders "$ATTEMPT"
}

# The dead man's switch: when no worker has spoken for so long, the work is nobody's. If the supervisor itself is gone, this ends the
# step in its place. It looks ten times in that time, but not more often than each second: a look costs five processes.
watch_lease() { # SECONDS
    NAP=''
    trap 'kill $NAP 2>/dev/null; exit' TERM
    _pause=$(($1 / 10))
    [ $_pause -ge 1 ] || _pause=1
    [ $_pause -le 10 ] || _pause=10
    _last=''
    read_uptime
    _since=$UPTIME
    while pause $_pause; do
        [ -e "$ATTEMPT/exit" ] && return
        _lease=$(changed_at "$JOB/lease")
        read_uptime
        if [ "$_lease" != "$_last" ]; then
            _last=$_lease _since=$UPTIME
        elif [ $((UPTIME - _since)) -gt "$1" ]; then
            [ -s "$ATTEMPT/why" ] || say deadman >"$ATTEMPT/why"
            if alive $$ "$SUP_START"; then kill -TERM $$; else end_step "$GRACE"; fi
            return
        fi
        alive $$ "$SUP_START" || has_members || return
    done
}

# --- the command: this process makes the claim and then becomes the step ------------------------------------------------------------

verb___command() { # JOB STEP FENCE NONCE
    use_step "$1" "$2"
    ATTEMPT=$STEP/a.$4
    read_boot
    look_at $$
    if ! put "$ATTEMPT/rec" "n=$4 f=$3 pid=$$ st=$P_START id=$BOOT t=$(now)"; then
        tell_starter "$(why_failed "$ATTEMPT/rec")"
    fi
    fail_point child.pre
    # A newer owner may have come since the starter looked. It may still come after this line, but then it finds the claim.
    read_highest_fence
    [ "$(pad "$3")" = "$HIGHEST" ] || exit $LOST_RACE
    fail_point child.checked
    attempt ln "$ATTEMPT/rec" "$STEP/claim" || lose_claim # the point of no return
    fail_point child.claimed
    attempt ln -f "$STEP/claim" "$WITNESSES/$STEP_NAME" # before the script, which may remove what it likes
    sync_folders "$STEP" "$ATTEMPT" "$JOB" "$WITNESSES"
    exec 3>&-
    load_secrets
    cd "$JOB/w" || exit 126
    # Under memory pressure the step goes, not the supervisor that has to tell about it.
    { echo 300 >/proc/self/oom_score_adj; } 2>/dev/null
    umask 022
    fail_point child.exec
    unset RT_FP
    exec sh -c "$STEP_SHELL" step "$ATTEMPT" "$STEP/cmd"
}

lose_claim() {
    [ -e "$STEP/claim" ] || tell_starter "$(why_failed "$STEP/claim")"
    exit $LOST_RACE
}

# The shell in which the script runs. EXIT: a second witness of the exit code, should the supervisor be killed; written into reserved
# room without truncation. TERM: without a trap the shell would die at once and take the code of the program it waits for with it;
# with it the shell lets that program save and finish, and passes its code on. A script cut short has not succeeded: 0 becomes 143.
# shellcheck disable=SC2016 # expanded by that shell, not here
STEP_SHELL='
_rt_attempt=$1 _rt_script=$2
shift 2
trap "_rt_code=\$?; printf \"%s\\n\" \"\$_rt_code\" 1<>\"\$_rt_attempt/code.r\" && mv -f \"\$_rt_attempt/code.r\" \"\$_rt_attempt/code\"" EXIT
trap "_rt_code=\$?; [ \$_rt_code -ne 0 ] || _rt_code=143; exit \$_rt_code" TERM
. "$_rt_script"
'

# Exports the secrets and removes the file before any code of the step runs. `export` and `printf` are built in: no argv ever holds them.
load_secrets() {
    [ -f "$STEP/secrets" ] || return 0
    while read -r _line; do
        [ "$_line" = . ] && continue
        _value=$(printf '%s' "${_line#*=}" | base64 -d && printf .) || exit 126 # the dot keeps newlines at the end
        export "${_line%%=*}=${_value%.}"
    done <"$STEP/secrets"
    rm -f "$STEP/secrets"
    unset _line _value
}

# --- asking ---------------------------------------------------------------------------------------------------------------------------

verb_status() { # JOB STEP
    need 2 'status JOB STEP' $#
    use_step "$1" "$2"
    read_state
    say "$STATE"
    [ -z "$CLAIM" ] || say "$CLAIM"
}

verb_statuses() { # JOB STEP...: a whole job in one round trip
    need 2 'statuses JOB STEP...' $#
    _job=$1
    shift
    for _step in "$@"; do
        use_step "$_job" "$_step"
        read_state
        say "$_step $STATE"
    done
}

verb_touch() { # JOB
    need 1 'touch JOB' $#
    use_job "$1"
    [ -d "$JOB" ] || die $EX_NO_STEP "no such job: $1"
    renew_lease || die $EX_NO_SPACE "no space left on the host's disk: $JOB/lease"
    say ok
}

# --- following ------------------------------------------------------------------------------------------------------------------------

# stdout: the log from byte OFFSET, raw and without end.  stderr: "C claim | state" first, "H size metrics outputs" for each ping, "X state"
# once, when the step has ended and its size is final.  stdin: "P metrics-file" pings, "A offset" acknowledges; its end ends the follower.
verb_follow() { # JOB STEP OFFSET
    need 3 'follow JOB STEP OFFSET' $#
    use_step "$1" "$2"
    check_number OFFSET "$3"
    await_claim
    renew_lease
    read_state
    printf 'C %s | %s\n' "$CLAIM" "$STATE" >&2
    PINGS=$ATTEMPT/f.$$
    true 2>/dev/null >"$PINGS" || PINGS=$JOB/lease # following must work on a full disk
    send_log "$3" &
    _sender=$!
    (watch_end) </dev/null &
    _watcher=$!
    trap 'stop_following; exit 0' TERM HUP
    while read -r _word _rest; do
        case $_word in
            P)
                [ ! -d "$ATTEMPT" ] || renew_lease # a worker that slept pings on after another one has cleaned up
                true 2>/dev/null >"$PINGS"
                read_size
                read_news "$_rest"
                printf 'H %s %s %s\n' "$SIZE" "$METRICS" "$OUTPUTS" >&2
                ;;
            A) acknowledge "$_rest" ;;
        esac
    done
    stop_following
}

# read_news FILE -> METRICS OUTPUTS: the size of a file of the work folder, and a word that is another one after any change of the
# output folder. Whoever compares them with the last ones need not list files, for a thousand jobs, to find that nothing happened.
read_news() {
    METRICS=0
    if [ -f "$JOB/w/$1" ]; then METRICS=$(wc -c 2>/dev/null <"$JOB/w/$1") || METRICS=0; fi
    METRICS=$((METRICS))
    OUTPUTS=$(find "$JOB/w/output" -type f -exec stat -c '%s %Y %Z %i %n' {} + 2>/dev/null)
    if [ -n "$OUTPUTS" ]; then OUTPUTS=$(say "$OUTPUTS" | sha256sum); fi
    OUTPUTS=${OUTPUTS%% *}
    OUTPUTS=${OUTPUTS:--}
}

# A worker that takes over may follow before the one it replaces has got its start through.
await_claim() {
    _looks=0
    until read_claim; do
        [ $_looks -lt $CLAIM_WAIT ] || die $EX_NO_STEP "not started: $JOB_NAME $STEP_NAME"
        _looks=$((_looks + 1))
        sleep 0.2
    done
}

stop_following() {
    trap '' TERM
    kill "$_sender" "$_watcher" 2>/dev/null
    rm -f "$ATTEMPT/f.$$"
}

# GNU tail takes overlayfs for a network mount and looks once a second; told to look every 20 ms it costs a thousandth of a core.
# Other tails know whole seconds only. There the shell keeps the file open and lets one cat after another go on where the last one
# stopped: they share the position.
send_log() { # OFFSET
    [ -e "$ATTEMPT/log" ] || return 0 # cancelled
    if tail -s 0.02 -c 0 /dev/null 2>/dev/null; then
        exec tail -s 0.02 -c "+$(($1 + 1))" -f "$ATTEMPT/log" 2>/dev/null
    fi
    exec 4<"$ATTEMPT/log"
    dd bs=1 skip="$1" count=0 <&4 2>/dev/null # a seek
    NAP=''
    trap 'kill $NAP 2>/dev/null; exit' TERM
    while cat <&4; do
        sleep 0.1 &
        NAP=$!
        wait $NAP
    done
}

# Waits for the end of the step and says so; and ends the follower when its client has gone without a word, which TCP may not notice for
# hours.
watch_end() {
    NAP=''
    trap 'kill $NAP 2>/dev/null; exit' TERM
    _told='' _last=''
    read_uptime
    _since=$UPTIME
    while :; do
        _pause=1
        if [ -z "$_told" ]; then
            read_state
            case $STATE in
                running*) _pause=lock ;;
                orphan*) ;;
                *)
                    printf 'X %s\n' "$STATE" >&2
                    _told=1
                    ;;
            esac
        fi
        read_uptime
        _ping=$(changed_at "$PINGS")
        if [ "$_ping" != "$_last" ]; then
            _last=$_ping _since=$UPTIME
        elif [ $((UPTIME - _since)) -gt $FOLLOWER_SILENCE ]; then
            kill "$$" "$_sender" 2>/dev/null # the sender too, should the follower itself have been killed
            return
        fi
        pause $_pause
    done
}

# In the background, because a shell handles signals while it waits but not while a program runs in the foreground.
pause() { # SECONDS, or "lock" for the end of the supervisor
    if [ "$1" != lock ]; then
        sleep "$1" &
    elif have flock && [ -e "$ATTEMPT/lock" ]; then
        flock -w 20 -s "$ATTEMPT/lock" sleep 0.02 2>/dev/null &
    else
        sleep 0.2 &
    fi
    NAP=$!
    wait $NAP
}

# What the worker holds need not stay here: the prefix is punched out of the file, and offsets stay what they were.
acknowledge() { # OFFSET
    is_number "$1" || return 0
    _blocks=$(($1 / 4096 * 4096))
    [ $_blocks -gt 0 ] && have fallocate && fallocate -p -o 0 -l $_blocks "$ATTEMPT/log" 2>/dev/null
}

# --- ending ---------------------------------------------------------------------------------------------------------------------------

# Takes the claim, so that nobody can start the step any more; or finds that somebody has. The reply says which of the two happened.
verb_cancel() { # JOB STEP FENCE
    need 3 'cancel JOB STEP FENCE' $#
    use_step "$1" "$2"
    take_fence "$3"
    make_folders "$STEP"
    if ! read_claim; then
        put "$STEP/cancel.$$" "n=cancelled f=$3" || give_up "$STEP/cancel"
        attempt ln "$STEP/cancel.$$" "$STEP/claim"
        rm -f "$STEP/cancel.$$"
        read_claim || give_up "$STEP/claim"
        sync_folders "$STEP"
    fi
    read_state
    case $STATE in cancelled*) rm -f "$STEP/secrets" "$STEP"/secrets.[0-9]* ;; esac
    say "$STATE"
}

verb_stop() { # JOB STEP FENCE GRACE
    need 4 'stop JOB STEP FENCE GRACE' $#
    use_step "$1" "$2"
    check_number GRACE "$4"
    take_fence "$3"
    read_state
    case $STATE in
        none)
            verb_cancel "$1" "$2" "$3"
            return
            ;;
        running* | orphan*) ;;
        *)
            say "$STATE"
            return
            ;;
    esac
    # Wishes, not truth: on a full disk the step is stopped without them.
    put "$ATTEMPT/stop" "$4"
    [ -s "$ATTEMPT/why" ] || put "$ATTEMPT/why" "stop-f$3"
    if supervisor_alive; then
        kill -TERM "${LINE% *}" 2>/dev/null
    else
        setsid sh "$SELF" __end "$1" "$2" "$4" </dev/null >/dev/null 2>&1 &
    fi
    say stopping
}

verb___end() { # JOB STEP GRACE: ends a step whose supervisor is gone
    use_step "$1" "$2"
    read_claim && end_step "$3"
}

# The fences stay: they are the memory of who may speak.
verb_clean() { # JOB FENCE
    need 2 'clean JOB FENCE' $#
    use_job "$1"
    take_fence "$2"
    for _folder in "$JOB"/s/*; do
        [ -d "$_folder" ] || continue
        use_step "$1" "${_folder##*/}"
        read_state
        case $STATE in running* | orphan*) die $EX_BUSY "busy: $STEP_NAME is $STATE" ;; esac
    done
    marked "RT_WATCH==$JOB_NAME=$RT_ROOT=" | while read -r _pid; do
        kill -KILL "$_pid" 2>/dev/null # the job's watchman, where it had one: see watchman.sh
    done
    attempt rm -rf "$JOB/s" "$JOB/w" "$JOB/lease" "$JOB/digests" "$WITNESSES" || give_up "$JOB"
    say ok
}

# ----------------------------------------------------------------------------------------------------------------------------------------

main() {
    [ $# -gt 0 ] || die $EX_USAGE 'usage: supervisor.sh VERB ...'
    _verb=$1
    shift
    case $_verb in
        init | prep | launch | start | secrets | status | statuses | touch | follow | cancel | stop | clean) ;;
        __supervise | __command | __end) ;;
        *) die $EX_USAGE "no such verb: $_verb" ;;
    esac
    "verb_$_verb" "$@"
}

main "$@"
