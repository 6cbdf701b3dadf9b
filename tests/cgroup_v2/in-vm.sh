# Runs in the machine of scripts/cgroup-v2-vm, by busybox, as root: everything there is cgroup v2. Started by scripts/test-cgroup-v2.
status=0
step() { echo; echo "== $(cut -d' ' -f1 /proc/uptime) s: $1"; }
failed() { echo "FAILED: $1"; status=1; }
enter() { # enter GROUP COMMAND…
    group=/sys/fs/cgroup/$1; mkdir -p "$group"; shift
    sh -c 'echo $$ > '"$group"'/cgroup.procs; exec "$@"' sh "$@"
}
# A broker is done some milliseconds after its service.
left() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        find /sys/fs/cgroup -name 'chatfn-*' | grep -q . || return 0
        sleep 0.2
    done
    find /sys/fs/cgroup -name 'chatfn-*'
    failed "groups are left"
}
# Nothing here is installed: npm has only to be found.
mkdir -p /usr/lib/node_modules/npm/bin
echo > /usr/lib/node_modules/npm/bin/npm-cli.js
chmod +x /usr/lib/node_modules/npm/bin/npm-cli.js
ln -s /usr/lib/node_modules/npm/bin/npm-cli.js /usr/bin/npm

step "the cgroup module, from the root of the hierarchy"
units --test-threads=1 cgroup::tests::memory cgroup::tests::forks cgroup::tests::a_process cgroup::tests::what_a_killed ||
    failed "units in /"
left
step "all of it from a group of its own, as in a pod or a unit; Landlock as this kernel has it"
echo "+memory +pids +cpu" > /sys/fs/cgroup/cgroup.subtree_control
enter pod units --test-threads=1 sandbox::cgroup sandbox::landlock || failed "units in /pod"; left
rmdir /sys/fs/cgroup/pod || failed "/pod is in use"
step "in a cgroup namespace that may not write"
enter pod /usr/bin/unshare -C -m sh -c 'umount /sys/fs/cgroup && mount -t cgroup2 -o ro none /sys/fs/cgroup &&
    units --nocapture pids_max 2>&1 | grep -o "the container.s cgroup file system is read-only"' || failed "units, read-only"; left
rmdir /sys/fs/cgroup/pod || failed "/pod is in use"

step "chatfn doctor"
chatfn doctor --json > /tmp/doctor.json || failed "doctor says that the service would not start"
node /work/check-doctor.js /tmp/doctor.json || failed "doctor"; left
step "chatfn doctor with the layers required that cgroups give"
chatfn doctor --set 'isolation.require=["memory","cpu","pids"]' > /tmp/doctor.txt || { cat /tmp/doctor.txt; failed "they are missing"; }
step "this kernel's Landlock has no scopes: without namespaces the service refuses several tenants"
if chatfn doctor --set isolation.mode=landlock > /tmp/doctor.txt 2>&1; then failed "it does not"; fi
grep "Linux 6.12; this kernel has ABI" /tmp/doctor.txt || { cat /tmp/doctor.txt; failed "or does not say so"; }

step "a service and its tenants"
e2e --test-threads=1 cgroup:: privileges::the_kernel || failed "end to end"; left
step "an attack on memory"
ISOLATION_TEST_ADDON=/work/addon.node ISOLATION_TEST_MODES=full CHATFN_READY_TIMEOUT=1m CHATFN_INIT_TIMEOUT=1m isolation \
    --test-threads=1 resources::memory_is_limited::full || failed "attacks"; left
echo; echo "took $(cut -d' ' -f1 /proc/uptime) s"
exit $status
