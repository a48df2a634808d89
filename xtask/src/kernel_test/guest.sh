# Runs the tests in a guest that is set up, and tells what came of them on ttyS1. Lines that begin with `@@guest` are read by
# xtask/src/kernel_test/report.rs.

stty -F /dev/ttyS1 raw -echo
exec </dev/null >/dev/ttyS1 2>&1
echo "@@guest kernel $(uname -r)"
echo "@@guest lsm $(cat /sys/kernel/security/lsm)"

# A program of tests, and what it is asked for. The bypass suite leaves the rows of its table in the file.
export PORTCULLIS_BYPASS_TABLE=/tmp/bypass-rows
run() {
    echo "@@guest begin ${1##*/}"
    (cd /tests && exec "$@")
    echo "@@guest end $?"
    [ -e "$PORTCULLIS_BYPASS_TABLE" ] || return
    sed 's/^/@@guest row /' "$PORTCULLIS_BYPASS_TABLE"
    rm "$PORTCULLIS_BYPASS_TABLE"
}
. /tests/run

# Says whether the kernel complained about itself.
echo "@@guest done $(cat /proc/sys/kernel/tainted)"
# A guest with systemd; one without has nothing else to do either.
[ ! -d /run/systemd/system ] || systemctl poweroff --force --force
