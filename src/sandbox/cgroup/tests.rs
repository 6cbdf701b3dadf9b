//! On the machine's real cgroups, v1 or v2, as root. Each test has a name of its own and removes what it made.

mod children;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{getppid, setresgid, setresuid};

use super::*;
use children::*;

/// v2 moves the whole test process as it opens and closes.
static SERIAL: Mutex<()> = Mutex::new(());
const MB: u64 = 1 << 20;
/// Far more than any of it takes, so that a busy machine fails no test.
const PATIENCE: Duration = Duration::from_secs(10);

struct Fixture {
    cgroups: Option<Cgroups>,
    _serial: MutexGuard<'static, ()>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        Self::open_where(name, |_| {})
    }

    /// With a machine that is made to look different.
    fn open_where(name: &str, change: impl FnOnce(&mut mounts::Place)) -> Self {
        let serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = Owner::of_this_process(name).unwrap();
        let mut place = mounts::read().unwrap();
        change(&mut place);
        let (tree, layers) = Cgroups::open_tree(&place, &owner, &[]).unwrap();
        let cgroups = Cgroups { tree, layers, owner, abandoned: Abandoned::default() };
        Self { cgroups: Some(cgroups), _serial: serial }
    }

    fn group(&self, limits: Limits) -> Group {
        self.cgroups().create("worker-1", &limits).unwrap()
    }

    fn cgroups(&self) -> &Cgroups {
        self.cgroups.as_ref().unwrap()
    }

    fn close(mut self) {
        let cgroups = self.cgroups.take().unwrap();
        let directory = cgroups.owner.directory();
        cgroups.close().unwrap();
        assert_eq!(directories_named(&directory), Vec::<PathBuf>::new(), "left");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(cgroups) = self.cgroups.take() {
            let _ = cgroups.close(); // The test has failed; at least nothing of it runs on.
        }
    }
}

/// In any hierarchy, beside this process.
fn directories_named(name: &str) -> Vec<PathBuf> {
    let place = mounts::read().unwrap();
    let own = place.unified.into_iter().chain(place.legacy.into_iter().map(|one| one.own)).flatten();
    let beside = own.flat_map(|own| [Some(own.join(name)), own.parent().map(|base| base.join(name))]);
    beside.flatten().filter(|path| path.exists()).collect()
}

/// How many processes run in its group of this id.
fn running_in(cgroups: &Cgroups, id: &str) -> usize {
    let groups = directories_named(&cgroups.owner.directory()).into_iter().map(|path| path.join(id));
    files::members(&groups.collect::<Vec<_>>()).unwrap().len()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "no {what}");
        thread::sleep(Duration::from_micros(200));
    }
    start.elapsed()
}

/// As the broker would, by and by. Returns how long it took.
fn end_all_of(group: &Group) -> Duration {
    wait_until("end of a group", || {
        group.kill().unwrap();
        group.is_empty().unwrap()
    })
}

fn remove(group: Group) {
    let mut left = Some(group);
    wait_until("removal", || match left.take().unwrap().remove().unwrap() {
        Removal::Removed => true,
        Removal::NotYet(group) => {
            left = Some(group);
            false
        }
    });
}

#[test]
fn memory_over_the_limit_is_killed_and_counted() {
    let fixture = Fixture::open("t-memory");
    let limits = Limits { memory_bytes: Some(32 * MB), ..Limits::default() };
    let within = fixture.cgroups().create("within", &limits).unwrap();
    let beyond = fixture.cgroups().create("beyond", &limits).unwrap();
    let (modest, greedy) = (start(&within, grow::<16>), start(&beyond, grow::<64>));
    assert_eq!(waitpid(modest, None), Ok(WaitStatus::Exited(modest, 0)));
    assert_eq!(waitpid(greedy, None), Ok(WaitStatus::Signaled(greedy, Signal::SIGKILL, false)));
    let (within_usage, beyond_usage) = (within.usage().unwrap(), beyond.usage().unwrap());
    println!("within: {within_usage:?}\nbeyond: {beyond_usage:?}");
    assert_eq!(within_usage.oom_kills, 0);
    match fixture.cgroups().layers().version {
        Version::V1 => assert_eq!(beyond_usage.oom_kills, 1),
        Version::V2 => assert!(beyond_usage.oom_kills >= 1), // Not exactly: see the field.
    }
    if let (Some(within), Some(beyond)) = (within_usage.memory_peak_bytes, beyond_usage.memory_peak_bytes) {
        assert!((16 * MB..32 * MB).contains(&within), "{within}");
        assert!(beyond >= 32 * MB, "{beyond}");
    }
    remove(within);
    remove(beyond);
    fixture.close();
}

#[test]
fn forks_are_refused_from_pids_max_on() {
    let fixture = Fixture::open("t-pids");
    for limit in [5, 12] {
        let group = fixture.group(Limits { pids: Some(limit), ..Limits::default() });
        let pid = start(&group, fork_until_refused);
        let refused_after = i32::try_from(limit).unwrap() - 1;
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, refused_after)));
        assert!(!group.is_empty().unwrap());
        end_all_of(&group);
        remove(group);
    }
    fixture.close();
}

#[test]
fn a_cpu_quota_is_kept_and_can_be_raised() {
    let fixture = Fixture::open("t-cpu");
    let group = fixture.group(Limits { cpu_millis: Some(100), ..Limits::default() });
    let pid = start(&group, spin);
    let used_within = |wall: Duration| {
        let before = cpu_ticks(pid);
        thread::sleep(wall);
        f64::from(cpu_ticks(pid) - before) / 100.0 / wall.as_secs_f64()
    };
    let limited = used_within(Duration::from_secs(1));
    group.set_limits(&Limits::default()).unwrap();
    let free = used_within(Duration::from_secs(1));
    println!("cpu: {limited} under 0.1, then {free} without a limit; {:?}", group.usage().unwrap());
    assert!((0.01..0.3).contains(&limited), "{limited}");
    assert!(free > limited, "{free}");
    end_all_of(&group);
    waitpid(pid, None).unwrap();
    remove(group);
    fixture.close();
}

#[test]
fn a_throttled_loop_dies_at_once() {
    let fixture = Fixture::open("t-spin");
    let group = fixture.group(Limits { cpu_millis: Some(100), ..Limits::default() });
    let pids: Vec<_> = (0..3).map(|_| start(&group, spin)).collect();
    thread::sleep(Duration::from_millis(300)); // Until it has used its quota.
    let killed_in = end_all_of(&group);
    println!("three loops under 10 % of a CPU died in {killed_in:?}");
    for pid in pids {
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Signaled(pid, Signal::SIGKILL, false)));
    }
    remove(group);
    fixture.close();
}

#[test]
fn a_fork_storm_dies() {
    let fixture = Fixture::open("t-storm");
    for (id, cpu_millis) in [("free", None), ("throttled", Some(100))] {
        let limits = Limits { pids: Some(64), cpu_millis, ..Limits::default() };
        let group = fixture.cgroups().create(id, &limits).unwrap();
        let pid = start(&group, storm);
        let mut running = 0;
        wait_until("storm", || {
            running = running_in(fixture.cgroups(), id);
            running > 8
        });
        let begin = Instant::now();
        group.kill().unwrap();
        let first_call = begin.elapsed();
        let killed_in = first_call + end_all_of(&group);
        println!("a fork storm of {running}, {id}, died in {killed_in:?}; the first call took {first_call:?}");
        waitpid(pid, None).unwrap();
        remove(group);
    }
    fixture.close();
}

#[test]
fn without_pids_the_freezer_holds_a_fork_storm_still() {
    let fixture = Fixture::open_where("t-freezer", |place| {
        place.legacy.retain(|one| !one.controllers.iter().any(|controller| controller == "pids"));
    });
    let layers = fixture.cgroups().layers().clone();
    if layers.version == Version::V2 {
        return; // There, this is the next test.
    }
    assert_eq!(layers.pids, Layer::Missing("cgroup v1 pids is not mounted".to_owned()));
    assert_eq!(layers.kill, Layer::Active("freezer, then SIGKILL to all".to_owned()));
    let group = fixture.group(Limits { pids: Some(64), ..Limits::default() });
    let pid = start(&group, storm_of_another_user);
    thread::sleep(Duration::from_millis(300));
    let running = running_in(fixture.cgroups(), "worker-1");
    assert!(running > 8, "{running}");
    println!("a fork storm of {running}, frozen, died in {:?}", end_all_of(&group));
    waitpid(pid, None).unwrap();
    remove(group);
    fixture.close();
}

/// v2 without its controllers, which machines with v1 have, too.
#[test]
fn a_unified_group_takes_and_kills_without_controllers() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Ok(own)) = mounts::read().unwrap().unified else { return };
    if !std::fs::read_to_string(own.join("cgroup.subtree_control")).unwrap().trim().is_empty() {
        return; // v2 is in real use: the other tests are about it.
    }
    let before = members_of(getpid());
    let owner = Owner::of_this_process("t-unified").unwrap();
    let (tree, layers) = v2::open_with(&own, &owner, &[getpid()], &[]).unwrap();
    println!("{layers:?}");
    assert_eq!(layers.kill, Layer::Active("cgroup.kill".to_owned()));
    assert!(!layers.memory.is_active());
    let cgroups = Cgroups { tree: Box::new(tree), layers, owner, abandoned: Abandoned::default() };
    let group = cgroups.create("worker-1", &Limits { memory_bytes: Some(32 * MB), ..Limits::default() }).unwrap();
    assert!(matches!(group.entry(true), Ok(Entry::IntoCgroup(_))));
    let by_clone3 = start(&group, storm_of_another_user);
    let by_clone = start_by(&group.entry(false).unwrap(), sleep_forever);
    for pid in [by_clone3, by_clone] {
        wait_until("process in its group", || members_of(pid).contains("worker-1") || !is_alive(pid));
    }
    thread::sleep(Duration::from_millis(300));
    let running = running_in(&cgroups, "worker-1");
    assert!(running > 8, "{running}");
    println!("a fork storm of {running}, by cgroup.kill, died in {:?}", end_all_of(&group));
    waitpid(by_clone3, None).unwrap();
    waitpid(by_clone, None).unwrap();
    remove(group);
    let path = own.join(cgroups.owner.directory()).join("worker-2");
    let group = cgroups.create("worker-2", &Limits::default()).unwrap();
    let pid = start(&group, storm_of_another_user);
    thread::sleep(Duration::from_millis(300));
    let running = running_in(&cgroups, "worker-2");
    let died_in = wait_until("end without cgroup.kill", || {
        v2::kill_one_by_one(&path).unwrap();
        group.is_empty().unwrap()
    });
    println!("a fork storm of {running}, by cgroup.freeze and SIGKILL, died in {died_in:?}");
    waitpid(pid, None).unwrap();
    remove(group);
    cgroups.close().unwrap();
    assert_eq!(members_of(getpid()), before);
    assert!(!own.join("chatfn-service").exists());
}

#[test]
fn limits_can_be_changed_while_it_runs() {
    let fixture = Fixture::open("t-change");
    let limits =
        |memory: u64, pids| Limits { memory_bytes: Some(memory * MB), pids: Some(pids), cpu_millis: Some(500) };
    let group = fixture.group(limits(32, 5));
    group.set_limits(&limits(128, 9)).unwrap(); // Up: memsw has to go first on v1.
    let pid = start(&group, grow::<64>);
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)));
    let pid = start(&group, fork_until_refused);
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 8)));
    end_all_of(&group);
    remove(group);
    let group = fixture.group(limits(128, 9));
    group.set_limits(&limits(32, 5)).unwrap(); // Down: it has to go last.
    let pid = start(&group, grow::<64>);
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Signaled(pid, Signal::SIGKILL, false)));
    let begin = Instant::now();
    group.set_limits(&limits(64, 7)).unwrap();
    println!("set_limits took {:?}", begin.elapsed());
    remove(group);
    fixture.close();
}

#[test]
fn a_running_process_can_be_moved_in() {
    let fixture = Fixture::open("t-enter");
    let group = fixture.group(Limits::default());
    let elsewhere = Entry::Procs(Vec::new());
    let pid = start_by(&elsewhere, sleep_forever);
    assert!(group.is_empty().unwrap());
    let begin = Instant::now();
    group.enter(pid).unwrap();
    println!("enter took {:?}", begin.elapsed());
    assert!(members_of(pid).contains("/worker-1"));
    assert!(!group.is_empty().unwrap());
    end_all_of(&group);
    waitpid(pid, None).unwrap();
    remove(group);
    fixture.close();
}

#[test]
fn a_group_in_use_is_not_removed_and_a_dropped_one_is_swept() {
    let fixture = Fixture::open("t-drop");
    let group = fixture.group(Limits::default());
    let pid = start(&group, sleep_forever);
    let Ok(Removal::NotYet(group)) = group.remove() else { panic!("a process was in it") };
    assert!(is_alive(pid));
    assert!(fixture.cgroups().create("worker-1", &Limits::default()).is_err(), "the id is in use");
    drop(group);
    wait_until("sweep", || fixture.cgroups().sweep() == 0);
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Signaled(pid, Signal::SIGKILL, false)));
    remove(fixture.group(Limits::default())); // Its id is free again.
    fixture.close();
}

#[test]
fn an_id_is_not_a_path_and_closing_ends_what_is_left() {
    let fixture = Fixture::open("t-close");
    for id in ["", "..", "a/b", "cgroup.procs"] {
        let refused = fixture.cgroups().create(id, &Limits::default()).map(drop).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL, "{id}");
    }
    let group = fixture.group(Limits::default());
    let pid = start(&group, spin);
    let cgroups = fixture.cgroups();
    println!("{:#?}", cgroups.layers());
    assert!([&cgroups.layers.memory, &cgroups.layers.pids, &cgroups.layers.cpu].iter().all(|layer| layer.is_active()));
    fixture.close();
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Signaled(pid, Signal::SIGKILL, false)));
    drop(group); // Later than its place: nothing is left to do.
}

#[test]
fn what_a_killed_service_left_is_ended_and_removed() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let told = in_child(true, || {
        let cgroups = Cgroups::open("t-stale", &[getppid()]).unwrap();
        let group = cgroups.create("worker-1", &Limits { cpu_millis: Some(100), ..Limits::default() }).unwrap();
        let pid = start(&group, spin);
        let told = format!("{pid} {}", cgroups.owner.directory());
        std::mem::forget((cgroups, group));
        told
    });
    let (pid, stale) = told.split_once(' ').unwrap();
    let pid = Pid::from_raw(pid.parse().unwrap());
    assert!(is_alive(pid));
    assert!(!directories_named(stale).is_empty());
    let other = Cgroups::open("t-stale2", &[]).unwrap();
    assert!(is_alive(pid), "another service's");
    // Its end has a deadline, which a slow machine misses: then it is the next start's.
    wait_until("end of what it left", || {
        let cgroups = Cgroups::open("t-stale", &[]).unwrap();
        cgroups.close().unwrap();
        !is_alive(pid) && directories_named(stale).is_empty()
    });
    other.close().unwrap();
}

#[test]
fn a_refusal_says_where_and_why() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let reason = in_child(false, || {
        let (uid, gid) = (65534.into(), 65534.into());
        setresgid(gid, gid, gid).and_then(|()| setresuid(uid, uid, uid)).unwrap();
        Cgroups::open("t-nobody", &[]).map(drop).unwrap_err().to_string()
    });
    println!("{reason}");
    assert!(
        reason.contains("EACCES") && reason.contains("/sys/fs/cgroup") && reason.contains("run as root"),
        "{reason}"
    );
}

#[test]
fn a_process_that_stays_behind_is_named() {
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Ok(own)) = mounts::read().unwrap().unified else { return };
    let is_root = !own.join("cgroup.type").exists();
    if is_root || !v2::controllers(&own).iter().any(|controller| controller == "memory") {
        return; // The root may have processes and limited children; without memory v2 is not used.
    }
    let pid = start_by(&Entry::Procs(Vec::new()), sleep_forever);
    let reason = Cgroups::open("t-busy", &[]).map(drop).unwrap_err().to_string();
    println!("{reason}");
    kill(pid, Signal::SIGKILL).unwrap();
    waitpid(pid, None).unwrap();
    assert!(reason.contains("EBUSY") && reason.contains(&format!("{pid} (")), "{reason}");
    let own_after = mounts::read().unwrap().unified.unwrap().unwrap();
    assert_eq!(own_after, own, "moved back");
    assert!(!Path::new(&own).join("chatfn-service").exists());
}
