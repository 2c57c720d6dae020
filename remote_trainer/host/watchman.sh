#!/bin/sh
# Watchman of remote_trainer, for rented machines that can end themselves: ends the machine when everything of ours is gone.
#
#   watchman.sh keep JOB SILENCE HOLD LIMIT     orders on stdin: FAREWELL=BASE64, perhaps OUTBOX=BASE64, and a single dot
#
# It runs the farewell, a text of the driver's for sh, over and over until the machine is gone, once
#   - no worker has spoken for SILENCE seconds, no step runs, and nothing is lost by it: there are no outputs, or they were put into the
#     outbox; without that not before HOLD seconds of silence,
#   - or LIMIT seconds have passed since these orders (0: no limit), whoever speaks.
# Silence while a step runs within the limit ends nothing: hours without a network are to be survived.
#
# Rules for editing:
#   - POSIX sh only; the same tests run under dash, bash in POSIX mode, and busybox.
#   - Nothing here may need the disk. The orders are in memory alone, also because the outbox is a secret: it is never an argument, in
#     the environment, in a file or in the log. Each `keep` puts a new watchman in the place of the one there is.
#   - No `local` in POSIX: NAMES IN CAPITALS last, _names are scratch and die with the next call.
#   - A watchman is known by RT_WATCH in its environment and by leading its session; its children are known by the session.

set -u
umask 077

case $0 in /*) SELF=$0 ;; *) SELF=$PWD/$0 ;; esac
RT_ROOT=${RT_ROOT:-$HOME/.rt}

EX_USAGE=78
EX_HOST_LACKS=79

LOOK_MAX=30        # seconds between two looks
BACKOFF_MAX=600    # seconds between two farewells, or two tries to put the outputs into the outbox
FAREWELL_LIMIT=300 # seconds that a farewell may take
OUTBOX_LIMIT=3600  # and the way to the outbox
OUTBOX_BYTES=5000000000 # what one request may carry
LOG_BYTES=20000

say() { printf '%s\n' "$*"; }

die() { # CODE MESSAGE...
    _code=$1
    shift
    printf 'E %s\n' "$*" >&2
    exit "$_code"
}

have() { command -v "$1" >/dev/null 2>&1; }

# The log is for people, and small. On a full disk it says nothing.
note() {
    _size=$(wc -c 2>/dev/null <"$RT_ROOT/watchman.log") || _size=0
    [ "$((_size))" -lt $LOG_BYTES ] || mv -f "$RT_ROOT/watchman.log" "$RT_ROOT/watchman.log.1" 2>/dev/null
    { printf '%s %s\n' "$(date +%s)" "$*" >>"$RT_ROOT/watchman.log"; } 2>/dev/null
}

# bounded SECONDS COMMAND...: where the host can.
bounded() {
    if have timeout; then timeout "$@"; else
        shift
        "$@"
    fi
}

# Time that passes is measured since boot: the clock of a fresh machine jumps when NTP reaches it.
read_uptime() {
    read -r UPTIME _ </proc/uptime
    UPTIME=${UPTIME%%.*}
}

# --- who watches ----------------------------------------------------------------------------------------------------------------

# The equals signs keep one job's name from being another one's beginning.
mark() { say "RT_WATCH==$1=$RT_ROOT="; }

# look_at PID -> P_SESSION P_START; false when there is no such process.
look_at() {
    _stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The program's name stands in brackets and may hold spaces and brackets: fields are counted from the last bracket.
    # shellcheck disable=SC2086 # split into fields on purpose
    set -- ${_stat##*) }
    [ $# -ge 20 ] || return 1
    P_SESSION=$4 P_START=${20}
}

# Processes with a text in their environment. Not with grep -F: that of some busyboxes sees nothing behind the first variable.
marked() { # TEXT
    LC_ALL=C grep -ls "$(say "$1" | sed 's/[][\.*^$]/\\&/g')" /proc/[0-9]*/environ | sed 's,/proc/,,;s,/environ,,'
}

watchmen() { # JOB; prints their process numbers
    marked "$(mark "$1")" | while read -r _pid; do
        if look_at "$_pid" && [ "$P_SESSION" = "$_pid" ]; then say "$_pid"; fi
    done
}

# All processes of a session, until none is left: timeout(1) makes a group of its own, so the group would not do.
end_session() { # SESSION
    _tries=0
    while [ $_tries -lt 50 ]; do
        _left=$(grep -ls ") [^ZX] [0-9]* [0-9]* $1 " /proc/[0-9]*/stat | sed 's,/proc/,,;s,/stat,,')
        [ -n "$_left" ] || return 0
        # shellcheck disable=SC2086 # several
        kill -KILL $_left 2>/dev/null
        _tries=$((_tries + 1))
    done
}

# relieve JOB: of several the youngest stays, whoever looks first; false when that is another one.
relieve() {
    look_at $$
    _mine=$P_START
    for _other in $(watchmen "$1"); do
        if [ "$_other" = $$ ] || ! look_at "$_other"; then continue; fi
        if [ "$P_START" -gt "$_mine" ] || { [ "$P_START" = "$_mine" ] && [ "$_other" -gt $$ ]; }; then return 1; fi
        end_session "$_other"
    done
}

# --- orders -----------------------------------------------------------------------------------------------------------------------

check_number() { # WHAT VALUE
    case $2 in
        0) ;;
        '' | 0* | *[!0-9]*) die $EX_USAGE "$1 is not a whole number: '$2'" ;;
    esac
    [ ${#2} -le 15 ] || die $EX_USAGE "$1 is too large"
}

read_orders() { # -> ORDERS FAREWELL OUTBOX
    ORDERS='' FAREWELL='' OUTBOX='' _line=''
    while read -r _line && [ "$_line" != . ]; do
        ORDERS="$ORDERS$_line
"
        _value=$(printf '%s' "${_line#*=}" | base64 -d 2>/dev/null) || die $EX_USAGE 'an order is not of the form NAME=BASE64'
        case $_line in
            FAREWELL=*) FAREWELL=$_value ;;
            OUTBOX=*) OUTBOX=$_value ;;
        esac
    done
    [ "$_line" = . ] || die $EX_USAGE 'the orders ended early: their last line must be a single dot'
    [ -n "$FAREWELL" ] || die $EX_USAGE 'the orders hold no farewell'
    case $OUTBOX in '' | http://* | https://*) ;; *) die $EX_USAGE 'the outbox is no address' ;; esac
    # It is quoted in a file of settings: no address has these.
    case $OUTBOX in *[\"\\[:space:][:cntrl:]]*) die $EX_USAGE 'the outbox is no address' ;; esac
}

verb_keep() { # JOB SILENCE HOLD LIMIT
    [ $# -eq 4 ] || die $EX_USAGE 'usage: keep JOB SILENCE HOLD LIMIT'
    case $1 in '' | [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*) die $EX_USAGE "JOB is not a name: '$1'" ;; esac
    check_number SILENCE "$2"
    check_number HOLD "$3"
    check_number LIMIT "$4"
    for _tool in base64 grep sed setsid sleep stat; do
        have $_tool || die $EX_HOST_LACKS "the host lacks the program $_tool"
    done
    read_orders
    _mark=$(mark "$1")
    # The watchman says on fd 3 that it has read its orders and relieved the others; all other ends are closed by then.
    _reply=$(exec 3>&1 >/dev/null && {
        printf '%s.\n' "$ORDERS" 3>&- | env "$_mark" setsid sh "$SELF" __watch "$1" "$2" "$3" "$4" 2>/dev/null &
    })
    [ "$_reply" = watching ] || [ -n "$(watchmen "$1")" ] || die $EX_HOST_LACKS 'the host could not start a watchman'
    say ok
}

# --- the watch ----------------------------------------------------------------------------------------------------------------------

verb___watch() { # JOB SILENCE HOLD LIMIT
    JOB_NAME=$1 SILENCE=$2 HOLD=$3
    [ "$HOLD" -ge "$SILENCE" ] || HOLD=$SILENCE
    cd /
    read_orders
    exec </dev/null
    relieve "$1" || exit 0
    read_uptime
    SINCE=$UPTIME END=$((UPTIME + $4)) LIMIT=$4 SENT='' SAID='' HEARD=$(last_word)
    say watching >&3
    exec 3>&-
    note "watching over $1: silence $2, hold $3, limit $4, ${OUTBOX:+an outbox}"
    LOOK=$((SILENCE / 10))
    [ $LOOK -ge 1 ] || LOOK=1
    [ $LOOK -le $LOOK_MAX ] || LOOK=$LOOK_MAX
    NAP=$LOOK
    while :; do
        sleep $NAP # whoever kills this nap has ended nothing
        listen
        if reason; then
            [ -n "$SAID" ] || note "the end: $REASON"
            SAID=1
            if try_to_leave; then note 'the provider has accepted the farewell'; fi
            NAP=$((NAP * 2))
            [ $NAP -le $BACKOFF_MAX ] || NAP=$BACKOFF_MAX
        else
            NAP=$LOOK SAID=''
        fi
    done
}

# Every call of a worker changes the time of `spoken`, every ping of a follower that of a lease. That a time has changed is what counts:
# which time it is, the host's clock may change its mind about.
last_word() { stat -c %y "$RT_ROOT/spoken" "$RT_ROOT"/j/*/lease 2>/dev/null; }

listen() {
    _word=$(last_word)
    read_uptime
    [ "$_word" = "$HEARD" ] || HEARD=$_word SINCE=$UPTIME SENT=''
    ! step_runs || SINCE=$UPTIME # who is away when a step ends has as long as anybody else
}

# Every process of a step has the root in its RT_MARK, between colons.
step_runs() { [ -n "$(marked ":$RT_ROOT:")" ]; }

reason() { # -> REASON; false when the machine is still somebody's
    _silent=$((UPTIME - SINCE))
    if [ "$LIMIT" -gt 0 ] && [ "$UPTIME" -ge "$END" ]; then
        REASON='the limit is over'
    elif [ $_silent -lt "$SILENCE" ] || step_runs; then
        return 1
    else
        REASON="no worker has spoken for $_silent s, and no step runs"
    fi
}

# What a step is writing is not sent: nobody could tell later that it is half a file.
try_to_leave() {
    if [ -z "$SENT" ] && has_outputs && ! step_runs; then
        if [ -n "$OUTBOX" ] && send_outputs; then
            SENT=1
        elif [ "$REASON" != 'the limit is over' ] && [ $((UPTIME - SINCE)) -lt "$HOLD" ]; then
            return 1
        fi
        listen
        reason || return 1 # somebody has come back meanwhile
    fi
    _said=$(bounded $FAREWELL_LIMIT sh -c "$FAREWELL" farewell 2>&1) && return
    note "the farewell failed: $(say "$_said" | tr -c ' -~' ' ' | tail -c 300)"
    return 1
}

# --- the outbox: an address to which one file may be put --------------------------------------------------------------------------

has_outputs() { [ -n "$(find "$RT_ROOT/j/$JOB_NAME/w/output" -type f 2>/dev/null | head -n 1)" ]; }

pack() { tar -cf - -C "$RT_ROOT/j/$JOB_NAME/w" output 2>/dev/null; }

# The size must be known before, and there may be no disk for a file: so it is packed twice.
send_outputs() {
    _bytes=$(pack | wc -c)
    _bytes=$((_bytes))
    if [ $_bytes -eq 0 ] || [ $_bytes -gt $OUTBOX_BYTES ]; then
        note "the outputs cannot be put into the outbox: $_bytes bytes"
        return 1
    fi
    for _way in curl python3; do
        have $_way || continue
        if printf 'url = "%s"\n' "$OUTBOX" | { exec 4<&0 && pack | by_$_way $_bytes; }; then
            note "$_bytes bytes of outputs are in the outbox"
            return 0
        fi
        note "$_way could not put $_bytes bytes of outputs into the outbox"
    done
    return 1
}

by_curl() { # BYTES; the address on fd 4, as curl wants it
    bounded $OUTBOX_LIMIT curl -sS -f --http1.1 -K /dev/fd/4 -T - -H 'Transfer-Encoding:' -H 'Expect:' \
        -H 'Content-Type: application/x-tar' -H "Content-Length: $1" >/dev/null 2>&1
}

by_python3() { # BYTES
    bounded $OUTBOX_LIMIT python3 -c '
import os, sys, urllib.request
address = os.fdopen(4).readline().split("\"")[1]
headers = {"Content-Length": sys.argv[1], "Content-Type": "application/x-tar"}
urllib.request.urlopen(urllib.request.Request(address, sys.stdin.buffer, headers, method="PUT"), timeout=300)' "$1" >/dev/null 2>&1
}

# ----------------------------------------------------------------------------------------------------------------------------------------

main() {
    [ $# -gt 0 ] || die $EX_USAGE 'usage: watchman.sh keep ...'
    _verb=$1
    shift
    case $_verb in keep | __watch) ;; *) die $EX_USAGE "no such verb: $_verb" ;; esac
    "verb_$_verb" "$@"
}

main "$@"
