#!/bin/sh
# Ends the rented machine it runs on, with what the provider has put there: its number and a key that is good for it alone.
# RT_PROVIDER is the service's address. Exits 0 once the provider has accepted, or says that the machine is gone.
# The key is never an argument: every process on the machine may read those.

: "${RT_PROVIDER:?}"

# Print a variable of the container: of ours, or of its first process, whose environment a login does not get.
variable() {
    eval "found=\${$1-}"
    [ -n "$found" ] || found=$( (tr '\0' '\n' </proc/1/environ | sed -n "s/^$1=//p") 2>/dev/null)
    printf '%s\n' "$found" | head -n 1
}

# Print the first line of a file of the home folder, or of root's.
kept() {
    for folder in "${HOME:-/root}" /root; do
        [ -r "$folder/$1" ] && head -n 1 "$folder/$1" && return
    done
}

number=$(variable CONTAINER_ID)
[ -n "$number" ] || number=$(kept .vast_containerlabel | sed 's/^C\.//')
key=$(variable CONTAINER_API_KEY)
[ -n "$key" ] || key=$(kept .vast_api_key)
case $number in '' | *[!0-9]*) echo "the machine's own number is not known" >&2; exit 2 ;; esac
case $key in '' | *[!0-9A-Za-z_.-]*) echo "the machine's own key is not known" >&2; exit 2 ;; esac
address=$RT_PROVIDER/api/v0/instances/$number/

# Each way prints the reply's body and, in a line of its own, its status. printf is a part of the shell: it is no process.
by_curl() {
    printf 'header = "Authorization: Bearer %s"\n' "$key" |
        curl -sS -m 60 -K - -X DELETE -H 'Content-Type: application/json' -d '{}' -w '\n%{http_code}\n' "$address"
}

by_python() {
    printf '%s\n' "$key" | python3 -c '
import sys, urllib.error, urllib.request
asked = urllib.request.Request(sys.argv[1], b"{}", method="DELETE", headers={
    "Authorization": "Bearer " + sys.stdin.readline().strip(), "Content-Type": "application/json"})
try:
    reply = urllib.request.urlopen(asked, timeout=60)
except urllib.error.HTTPError as refused:
    reply = refused
print(reply.read().decode("utf-8", "replace"))
print(reply.status)' "$address"
}

by_wget() {
    settings=$(umask 077 && mktemp) || return
    printf 'header = Authorization: Bearer %s\n' "$key" >"$settings"
    WGETRC=$settings wget -q -S -O - -T 60 -t 1 --content-on-error --method=DELETE --body-data='{}' \
        --header='Content-Type: application/json' "$address" 2>"$settings.seen"
    echo
    sed -n 's/^ *HTTP\/[0-9.]* \([0-9]*\).*/\1/p' "$settings.seen" | tail -n 1
    rm -f "$settings" "$settings.seen"
}

ask() {
    case $1 in
    curl) by_curl ;;
    python3) by_python ;;
    wget) by_wget ;;
    esac
}

for way in curl python3 wget; do
    command -v "$way" >/dev/null 2>&1 || continue
    said=$(ask "$way" 2>&1)
    status=$(printf '%s\n' "$said" | tail -n 1)
    case $status in
    2??) case $said in *'"success"'*false*) ;; *) exit 0 ;; esac ;;
    404) case $said in *no_such_instance* | *not_found*) exit 0 ;; esac ;;
    esac
    printf 'the provider has not ended the machine: %s\n' "$said" | head -c 500 >&2
done
exit 1
