#!/bin/sh
# Host side of data for remote_trainer: takes inputs in, lists outputs, puts checkpoints back. docs/datasets.md describes it.
#
#   $RT_ROOT/data/DIGEST/tree       an input, complete and verified; `ok` beside it is written last, `size` is in bytes, `sealed` is newer
#                                   than every change of the tree
#   $RT_ROOT/data/DIGEST/uses/KEY   a job that was given it
#   $RT_ROOT/data/tmp/DIGEST/       one on its way: tree, got/N for each chunk that is verified and in its place, part/N with the bytes that
#                                   are there of another (a bundle's in part/N.tar), owner, w/PID
#   $RT_ROOT/j/KEY/w                a job's work folder (the supervisor's); its outputs are in w/output
#
# A bundle is verified before it is unpacked. A piece of a big file is written where it belongs and verified there, so that big data is
# written once. What came of a chunk before the line broke stays, and only the rest is sent. A tree appears under its final name by rename,
# when every chunk was verified.
#
# Rules for editing:
#   - POSIX sh and what busybox has: dash, bash and busybox run the same tests. No Python needed.
#   - Replaced on a host by rename only: its name holds its digest.
#   - Paths come from the worker and are checked there; names that become paths here are checked again.

set -u
umask 022
LC_ALL=C # names are bytes
TZ=UTC0  # times are compared as text
# GNU tar reads 10 KiB at a time otherwise, and cuts the files it writes there; other tars do not know the variable
TAR_OPTIONS=--blocking-factor=2048
export LC_ALL TZ TAR_OPTIONS

EX_NO_SPACE=28
EX_NOT_NOW=70
EX_USAGE=78
EX_HOST_LACKS=79

BLOCK=262144
PATIENCE=600 # seconds without a chunk after which another job's transfer is taken over
GAP=30       # the same when nothing of it runs here

DATA=$RT_ROOT/data

say() { printf '%s\n' "$*"; }

die() { # CODE MESSAGE...
    _code=$1
    shift
    say "E $*" >&2
    exit "$_code"
}

have() { command -v "$1" >/dev/null 2>&1; }

check_name() { # VALUE
    case $1 in '' | [!A-Za-z0-9]* | *[!A-Za-z0-9._-]*) die $EX_USAGE "not a name: '$1'" ;; esac
}

use_digest() { # DIGEST
    check_name "$1"
    DIGEST=$1
    HOME_OF_IT=$DATA/$1
    TMP=$DATA/tmp/$1
}

use_job() { # KEY
    check_name "$1"
    WORK=$RT_ROOT/j/$1/w
}

age_of() { # FILE; seconds since it changed
    _then=$(stat -c %Y "$1" 2>/dev/null) || _then=0
    echo $(($(date +%s) - _then))
}

{ read -r BOOT </proc/sys/kernel/random/boot_id; } 2>/dev/null || BOOT=unknown

free_bytes() {
    df -Pk "$DATA" 2>/dev/null | awk 'NR == 2 { printf "%.0f\n", $4 * 1024 }'
}

# openssl uses the processor's own instructions: three times as fast as sha256sum of coreutils 9.1
if have openssl; then
    sha256() { openssl dgst -sha256 -r "$@"; }
elif have sha256sum; then
    sha256() { sha256sum -b "$@"; }
else
    sha256() { die $EX_HOST_LACKS "the host lacks openssl and sha256sum: one of them is needed to verify data"; }
fi

# --- who writes: one owner at a time, whose earlier processes are gone -----------------------------------------------------------

started_at() { # PID; tells a process from a later one with the same number
    { read -r _stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The name in parentheses may hold anything; the start time is the 20th field after it.
    # shellcheck disable=SC2086  # split on purpose
    set -- ${_stat##*) }
    echo "${20}"
}

end_writers() { # ends what an earlier connection of this owner left behind, so that two never write the same file
    for _mark in "$TMP"/w/*; do
        [ -e "$_mark" ] || continue
        _pid=${_mark##*/}
        read -r _start <"$_mark" || _start=
        _patience=2 # at first only what it runs is ended, so that it can note how far it came
        while [ "$(started_at "$_pid")" = "$_start" ] && [ -n "$_start" ]; do
            _children=$(children_of "$_pid")
            # shellcheck disable=SC2086  # numbers, one a word
            if [ "$_patience" -gt 0 ]; then kill $_children && kill -CONT $_children; else kill -9 "$_pid" $_children; fi 2>/dev/null
            _patience=$((_patience - 1))
            sleep 0.1 2>/dev/null || sleep 1
        done
        rm -f "$_mark" "$TMP/said.$_pid"
    done
}

children_of() { # PID; the unpacking processes, which would outlive it
    for _status in /proc/[0-9]*/stat; do
        { read -r _line <"$_status"; } 2>/dev/null || continue
        _rest=${_line##*) }
        _rest=${_rest#* }
        [ "${_rest%% *}" = "$1" ] && echo "${_line%% *}"
    done
}

some_writer_lives() {
    for _mark in "$TMP"/w/*; do
        [ -e "$_mark" ] || continue
        read -r _start <"$_mark" && [ "$(started_at "${_mark##*/}")" = "$_start" ] && return 0
    done
    return 1
}

become_owner() { # OWNER; false when another owner is at it
    say "$1 $BOOT" >"$TMP/owner.$$"
    if ! ln "$TMP/owner.$$" "$TMP/owner" 2>/dev/null; then
        read -r _current _boot <"$TMP/owner" || _current=
        if [ "$_boot" != "$BOOT" ]; then # nobody lives, and what had come may not have reached the disk
            rm -rf "$TMP/got" "$TMP/part" "${TMP:?}/w"
            mkdir -p "$TMP/got" "$TMP/part" "$TMP/w"
        elif [ "$_current" != "$1" ]; then
            _age=$(age_of "$TMP/owner")
            _limit=$GAP
            some_writer_lives && _limit=$PATIENCE
            if [ "$_age" -lt "$_limit" ]; then
                rm -f "$TMP/owner.$$"
                return 1
            fi
        fi
        mv -f "$TMP/owner.$$" "$TMP/owner"
    fi
    rm -f "$TMP/owner.$$"
    end_writers
}

is_owner() { # OWNER
    { read -r _current _ <"$TMP/owner"; } 2>/dev/null && [ "$_current" = "$1" ]
}

# --- inputs -----------------------------------------------------------------------------------------------------------------

is_complete() { # FOLDER; what was not yet on the disk when the machine went down is not trusted
    { read -r _word _boot <"$1/ok"; } 2>/dev/null || return 1
    [ "$_word" = durable ] || [ "$_boot" = "$BOOT" ]
}

verb_digests() {
    for _folder in "$DATA"/*/; do
        _folder=${_folder%/}
        is_complete "$_folder" && say "${_folder##*/}"
    done
    return 0
}

is_untouched() { # FOLDER; a step that runs as root can write to its inputs, whatever their mode
    [ -e "$1/sealed" ] || return 0 # published by an earlier version
    find "$1/sealed" "$1/tree" -exec stat -c %z {} + | awk 'NR == 1 { sealed = $0 } $0 > sealed { changed = 1; exit } END { exit changed }'
}

is_given_to_another() { # FOLDER KEY; a job whose work folder is there
    for _use in "$1"/uses/*; do
        [ "${_use##*/}" != "$2" ] && [ -d "$RT_ROOT/j/${_use##*/}/w" ] && return 0
    done
    return 1
}

verb_begin() { # DIGEST KEY: "present" | "busy" | "ready FREE", "got N" for each chunk that is there, "part N SIZE" for some bytes of one
    use_digest "$1"
    check_name "$2"
    if [ -e "$HOME_OF_IT" ]; then
        if ! is_complete "$HOME_OF_IT"; then
            discard "$HOME_OF_IT"
        elif is_untouched "$HOME_OF_IT"; then
            true >"$HOME_OF_IT/uses/$2"
            touch "$HOME_OF_IT/ok" # for prune: used just now
            say present
            return
        elif is_given_to_another "$HOME_OF_IT" "$2"; then
            die $EX_NOT_NOW "a job that still runs has changed the data $DIGEST it shares: it is sent again once that job is over"
        else
            discard "$HOME_OF_IT"
        fi
    fi
    mkdir -p "$TMP/tree" "$TMP/got" "$TMP/part" "$TMP/w" "$TMP/uses" || die $EX_NO_SPACE "cannot make folders below $DATA"
    if ! become_owner "$2"; then
        say busy
        return
    fi
    if [ -e "$HOME_OF_IT" ]; then # published by another job just now
        discard "$TMP"
        verb_begin "$@"
        return
    fi
    say "ready $(free_bytes)"
    (cd "$TMP/got" && for _n in *; do [ -e "$_n" ] && say "got $_n"; done)
    (cd "$TMP/part" && for _n in *[0-9]; do { read -r _size <"$_n"; } 2>/dev/null && say "part $_n $_size"; done)
    return 0
}

verb_receive() { # DIGEST KEY; on stdin the rest of chunks, each after a line "N SHA256 SIZE FROM OFFSET PATH" (a bundle: "- -")
    use_digest "$1"
    SAID=$TMP/said.$$
    trap 'rm -f "$TMP/w/$$" "$SAID"' EXIT
    { started_at $$ >"$TMP/w/$$"; } 2>/dev/null || die $EX_NOT_NOW "the transfer of $DIGEST is over"
    while IFS= read -r _line; do
        is_owner "$2" || die $EX_NOT_NOW "another job took over the transfer of $DIGEST"
        touch "$TMP/owner"
        take_chunk "$_line" || return
    done
}

take_chunk() { # LINE
    NUMBER=${1%% *} _rest=${1#* }
    SHA=${_rest%% *} _rest=${_rest#* }
    SIZE=${_rest%% *} _rest=${_rest#* }
    FROM=${_rest%% *} _rest=${_rest#* }
    OFFSET=${_rest%% *} BUNDLE=
    PART=$TMP/part/$NUMBER
    PLACE=$TMP/tree/${_rest#* }
    [ "$OFFSET" != - ] || { BUNDLE=$PART.tar PLACE=$PART.tar OFFSET=0; }
    { true 1<>"$PLACE"; } 2>/dev/null || die $EX_HOST_LACKS "cannot write $PLACE"
    note_part "$FROM"
    receive_rest
    note_part "$((HERE - OFFSET))"
    if [ "$HERE" -lt $((OFFSET + SIZE)) ]; then # the line broke, the disk is full, or we were told to stop
        PROBLEM=$(sed -n 's/^dd: //p' "$SAID" | head -n 1)
        # A disk that is full has no room for that message either.
        [ "$STATUS" -eq 0 ] || [ "$STATUS" -ge 128 ] || say "fail $NUMBER ${PROBLEM:-No space left on device}"
        return 1
    fi
    FOUND=$(read_back | sha256)
    case ${FOUND%% *} in
        "$SHA") ;;
        '') return 1 ;;
        *)
            rm -f "$PART" "$PART.tar"
            say "bad $NUMBER"
            return
            ;;
    esac
    if [ -n "$BUNDLE" ] && ! PROBLEM=$(tar -xmof "$BUNDLE" -C "$TMP/tree" 2>&1); then
        say "fail $NUMBER $(say "$PROBLEM" | head -n 1)"
        return 1
    fi
    true >"$TMP/got/$NUMBER" || return
    rm -f "$PART" "$PART.tar" # ext4 writes a file to the disk that was emptied and filled again; one that goes is never written
    say "ok $NUMBER"
}

note_part() { printf '%018d\n' "$1" 1<>"$PART"; } # BYTES; in the place of the former note, for which a full disk has room

receive_rest() { # puts stdin where it belongs; HERE is where the file's bytes end then, STATUS tells whether the disk took them
    {
        dd bs=1 "seek=$((OFFSET + FROM))" count=0 2>/dev/null
        exactly $((SIZE - FROM)) 2>"$SAID"
        STATUS=$?
        # Of the bytes that came, not of those that were sent: the kernel knows.
        while read -r _name HERE; do [ "$_name" != pos: ] || break; done </proc/self/fdinfo/1
    } 1<>"$PLACE"
}

read_back() { { dd bs=$BLOCK "skip=$((OFFSET / BLOCK))" count=0 2>/dev/null; exactly "$SIZE" 2>/dev/null; } <"$PLACE"; } # what lies there now

exactly() { # SIZE; not a byte more of stdin, which a buffering reader would take
    { [ "$1" -lt $BLOCK ] || dd bs=$BLOCK count=$(($1 / BLOCK)) iflag=fullblock; } &&
        { [ $(($1 % BLOCK)) -eq 0 ] || dd bs=$(($1 % BLOCK)) count=1 iflag=fullblock; }
}

verb_finish() { # DIGEST KEY CHUNKS SIZE; on stdin the paths of the files that came in pieces, which had to be writable until now
    use_digest "$1"
    if is_complete "$HOME_OF_IT"; then
        return
    fi
    is_owner "$2" || die $EX_NOT_NOW "another job took over the transfer of $DIGEST"
    _number=0
    while [ "$_number" -lt "$3" ]; do
        [ -e "$TMP/got/$_number" ] || die $EX_USAGE "chunk $_number of $DIGEST is missing"
        _number=$((_number + 1))
    done
    while IFS= read -r _path; do chmod a-w "$TMP/tree/$_path" || return; done
    # Not the top folder before it is renamed, which an unprivileged user may not do with one that is read-only.
    find "$TMP/tree" -mindepth 1 -type d -exec chmod a-w {} +
    true >"$TMP/uses/$2"
    say "$4" >"$TMP/size"
    say "boot $BOOT" >"$TMP/ok" || die $EX_NO_SPACE "cannot write $TMP/ok"
    rm -rf "$TMP/got" "$TMP/part" "$TMP/w" "$TMP/owner"
    mv "$TMP" "$HOME_OF_IT" || die $EX_NO_SPACE "cannot rename $TMP"
    chmod a-w "$HOME_OF_IT/tree"
    true >"$HOME_OF_IT/sealed"
    # dash keeps the caller's end of the pipe open for a function with redirections: whoever reads there would wait for the disk.
    (exec >/dev/null 2>&1 </dev/null && make_durable) &
}

make_durable() { # afterwards, because nobody need wait for the disk
    { sync -f "$HOME_OF_IT" || sync; } && say durable >"$HOME_OF_IT/ok.new" && mv "$HOME_OF_IT/ok.new" "$HOME_OF_IT/ok"
}

verb_space() { # free bytes, and where the data lies
    mkdir -p "$DATA"
    say "$(free_bytes) $DATA"
}

is_used() { # FOLDER; a job whose work folder is not there yet may be about to start
    for _use in "$1"/uses/*; do
        [ -e "$_use" ] || continue
        [ ! -d "$RT_ROOT/j/${_use##*/}/w" ] && [ "$(age_of "$_use")" -ge 86400 ] || return 0
    done
    return 1
}

discard() { # FOLDER; it is gone for others at once
    mkdir -p "$DATA/tmp"
    _gone=$DATA/tmp/gone.$$.${1##*/}
    chmod u+w "$1/tree" 2>/dev/null
    mv "$1" "$_gone" || return
    chmod -R u+w "$_gone"
    rm -rf "$_gone"
}

verb_prune() { # BYTES; removes what was used longest ago and by no live job, until the rest takes no more
    _left=0
    for _folder in "$DATA"/*/ok; do
        _folder=${_folder%/ok}
        { read -r _size <"$_folder/size"; } 2>/dev/null && _left=$((_left + _size))
    done
    # shellcheck disable=SC2012  # names are digests
    for _ok in $(ls -tr "$DATA"/*/ok 2>/dev/null | sed "s|^$DATA/||"); do
        [ "$_left" -gt "$1" ] || break
        _folder=$DATA/${_ok%/ok}
        { read -r _size <"$_folder/size"; } 2>/dev/null || _size=0
        is_used "$_folder" || { discard "$_folder" && _left=$((_left - _size)) && say "removed ${_folder##*/} $_size"; }
    done
    return 0
}

# --- outputs and checkpoints ----------------------------------------------------------------------------------------------------

# Lines of "SIZE MTIME CTIME INODE ./PATH". A name with a control character could pass for another line: not listed.
list_files() {
    find . -type f ! -path '*[[:cntrl:]]*' -exec stat -c '%s %Y %Z %i %n' {} + 2>/dev/null
}

verb_outputs() { # KEY SETTLED REGEX; lines "SHA256 SIZE MTIME CTIME INODE ./PATH"; files changed less than SETTLED seconds ago are left out
    use_job "$1"
    KNOWN=$RT_ROOT/j/$1/digests
    [ ! -L "$WORK/output" ] && cd "$WORK/output" 2>/dev/null || return 0
    export KNOWN WANTED="$3"
    # All in memory: on a full disk a list in a file ends early, and what is not listed passes for missing.
    _there=$(list_files | awk -v now="$(date +%s)" -v settled="$2" '
        BEGIN { while ((getline line <ENVIRON["KNOWN"]) > 0) known[substr(line, 66)] = substr(line, 1, 64) }
        {
            path = $0
            sub(/^[0-9]+ [0-9]+ [0-9]+ [0-9]+ \.\//, "", path)
            if (path !~ ENVIRON["WANTED"] || now - $3 < settled) next
            print (($0 in known) ? known[$0] : "?") " " $0
        }')
    _hashes=$(say "$_there" | sed -n 's/^? [0-9]* [0-9]* [0-9]* [0-9]* //p' | tr '\n' '\000' | xargs -0 -r sh -c "$HASH_FILES" sh 2>/dev/null)
    _found=$({ say "$_hashes" && say -- && say "$_there"; } | awk '
        !listing { if ($0 == "--") listing = 1; else digest[substr($0, 67)] = substr($0, 1, 64); next }
        $0 != "" {
            rest = substr($0, index($0, " ") + 1)
            path = rest
            sub(/^[0-9]+ [0-9]+ [0-9]+ [0-9]+ /, "", path)
            sha = ($1 == "?") ? digest[path] : $1
            if (sha != "") print sha " " rest
        }')
    [ -n "$_found" ] || return 0
    say "$_found"
    # A file that changed within this second may change again without its times telling: its digest is not kept.
    say "$_found" | awk -v now="$(date +%s)" 'now - $4 >= 2' >"$KNOWN.$$" 2>/dev/null && [ -s "$KNOWN.$$" ] && mv -f "$KNOWN.$$" "$KNOWN"
    rm -f "$KNOWN.$$"
}

# shellcheck disable=SC2016  # for the shell that xargs starts
if have openssl; then HASH_FILES='exec openssl dgst -sha256 -r "$@"'; else HASH_FILES='exec sha256sum -b "$@"'; fi

verb_read() { # KEY PATH OFFSET LIMIT
    use_job "$1"
    [ -f "$WORK/$2" ] && [ ! -L "$WORK/$2" ] || return 0
    tail -c "+$(($3 + 1))" "$WORK/$2" | head -c "$4"
}

verb_place() { # KEY INBOX; lines "NAME SHA256 PATH": moves files, once verified, from the inbox to their places in the work folder
    use_job "$1"
    while IFS= read -r _line; do
        _file=$2/${_line%% *} _rest=${_line#* }
        _sha=${_rest%% *}
        _target=$WORK/${_rest#* }
        _found=$(sha256 "$_file")
        if [ "${_found%% *}" != "$_sha" ]; then
            rm -f "$_file"
            say "bad ${_rest#* }"
            continue
        fi
        # Another disk than the work folder's would copy: the last step is a rename in any case.
        attempt_place || die $EX_NO_SPACE "cannot write $_target"
        say "ok ${_rest#* }"
    done
    rmdir "$2" 2>/dev/null
    return 0
}

attempt_place() { mkdir -p "${_target%/*}" && mv -f "$_file" "$_target.part" && mv -f "$_target.part" "$_target"; }

_verb=${1:-}
case $_verb in
    digests | begin | receive | finish | space | prune | outputs | read | place)
        shift
        "verb_$_verb" "$@"
        ;;
    *) die $EX_USAGE "no such verb: '$_verb'" ;;
esac
