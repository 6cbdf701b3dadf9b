//! Whatever is said arrives as it was said, with its descriptors; whatever else arrives is an error.

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::costs::Cost;
use super::super::egress::policy::{Egress, Limits as EgressLimits, Rule};
use super::super::egress::{Cidr, Policy};
use super::super::settings::Identity;
use super::super::spec::{ExitStatus, Profile};
use super::*;
use crate::model::{Layer, LayerName, Mode};

/// Control characters, quotes and newlines among them.
fn text() -> impl Strategy<Value = String> {
    "(?s).{0,40}"
}

fn path() -> impl Strategy<Value = PathBuf> {
    text().prop_map(PathBuf::from)
}

fn mode() -> impl Strategy<Value = Mode> {
    select(vec![Mode::Full, Mode::Userns, Mode::Landlock, Mode::None])
}

fn duration() -> impl Strategy<Value = Duration> {
    (any::<u32>(), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Duration::new(seconds.into(), nanos))
}

fn settings() -> impl Strategy<Value = Settings> {
    let service = option::of((any::<u32>(), any::<u32>(), vec(any::<u32>(), 0..4)));
    let service = service.prop_map(|of| of.map(|(user, group, groups)| Identity { user, group, groups }));
    (path(), path(), vec(path(), 0..4), option::of(mode()), text(), any::<u32>(), service).prop_map(
        |(node, root, sources, mode, name, service_pid, service)| Settings {
            node,
            root,
            sources,
            mode,
            name,
            service_pid,
            service,
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>());
    (numbers, option::of(duration())).prop_map(
        |((memory_bytes, data_bytes, cpu_millis, pids, tmp_bytes, open_files, file_bytes), cpu_time)| Limits {
            memory_bytes,
            data_bytes,
            cpu_millis,
            pids,
            tmp_bytes,
            open_files,
            file_bytes,
            cpu_time,
        },
    )
}

fn mounts() -> impl Strategy<Value = Vec<Mount>> {
    let mount = (path(), path(), any::<bool>());
    vec(mount.prop_map(|(source, target, writable)| Mount { source, target, writable }), 0..4)
}

fn cidr() -> impl Strategy<Value = Cidr> {
    (any::<IpAddr>(), 0..=32u8).prop_map(|(address, prefix)| format!("{address}/{prefix}").parse().expect("a network"))
}

fn egress() -> impl Strategy<Value = Egress> {
    let rule = (cidr(), vec(any::<u16>(), 0..4)).prop_map(|(network, ports)| Rule { network, ports });
    (0..3, vec(rule, 0..4), option::of(any::<IpAddr>())).prop_map(|(kind, allow, source)| match kind {
        0 => Egress::None,
        1 => Egress::Public { allow },
        _ => Egress::Dedicated { allow, source },
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let limits = (any::<u32>(), any::<u32>(), 0..1000usize, 0..1000usize).prop_map(
        |(connects_per_second, requests_per_second, blocking_connects_max, questions_max)| EgressLimits {
            connects_per_second,
            requests_per_second,
            blocking_connects_max,
            questions_max,
        },
    );
    (egress(), vec(cidr(), 0..4), vec(text(), 0..4), limits).prop_map(|(egress, deny, names_refused, limits)| Policy {
        egress,
        deny,
        names_refused,
        limits,
    })
}

fn network() -> impl Strategy<Value = Network> {
    prop_oneof![
        Just(Network::Nothing),
        policy().prop_map(Network::Egress),
        any::<u16>().prop_map(|port| Network::Registry { port }),
    ]
}

fn spec() -> impl Strategy<Value = Spec> {
    let profile = select(vec![Profile::Worker, Profile::WorkerWithSubprocesses, Profile::Install]);
    let environment = btree_map(text(), text(), 0..4);
    let run = (profile, vec(text(), 0..4), environment, path(), option::of(path()));
    (run, mounts(), limits(), network(), any::<bool>()).prop_map(
        |((profile, args, environment, directory, scratch), mounts, limits, network, protocol)| Spec {
            profile,
            args,
            environment,
            mounts,
            directory,
            scratch,
            limits,
            network,
            protocol,
        },
    )
}

fn id() -> impl Strategy<Value = ChildId> {
    any::<u64>().prop_map(ChildId)
}

fn request() -> impl Strategy<Value = Request> {
    let any_request = prop_oneof![
        settings().prop_map(|settings| Request::SetUp(Box::new(settings))),
        (id(), spec()).prop_map(|(id, spec)| Request::Spawn { id, spec: Box::new(spec) }),
        (id(), mounts(), limits(), network()).prop_map(|(id, mounts, limits, network)| Request::Attach {
            id,
            mounts,
            limits,
            network
        }),
        id().prop_map(|id| Request::Kill { id }),
    ];
    any_request.prop_map(|request| match request {
        // No `_` arm: a new variant has to get a strategy above.
        Request::SetUp(_) | Request::Spawn { .. } | Request::Attach { .. } | Request::Kill { .. } => request,
    })
}

fn report() -> impl Strategy<Value = Report> {
    let name = select(vec![LayerName::Broker, LayerName::Landlock, LayerName::Memory, LayerName::Pids]);
    let layer = (name, any::<bool>(), text()).prop_map(|(name, active, proof)| Layer { name, active, proof });
    (mode(), vec(layer, 0..4), vec((mode(), text()), 0..3), any::<u32>(), option::of(text())).prop_map(
        |(mode, layers, refused, landlock_abi, no_attach)| Report { mode, layers, refused, landlock_abi, no_attach },
    )
}

fn exit() -> impl Strategy<Value = Exit> {
    let status = prop_oneof![
        any::<i32>().prop_map(ExitStatus::Code),
        any::<i32>().prop_map(ExitStatus::Signal),
        Just(ExitStatus::Withdrawn),
        Just(ExitStatus::Unknown),
    ];
    (status, duration(), any::<u64>(), any::<bool>()).prop_map(
        |(status, cpu_time, peak_memory_bytes, memory_limit_hit)| Exit {
            status,
            cpu_time,
            peak_memory_bytes,
            memory_limit_hit,
        },
    )
}

fn costs() -> impl Strategy<Value = Costs> {
    vec((text(), duration()).prop_map(|(step, took)| Cost { step, took }), 0..4).prop_map(Costs)
}

fn reply() -> impl Strategy<Value = Reply> {
    let any_reply = prop_oneof![
        report().prop_map(Reply::Ready),
        text().prop_map(|reason| Reply::NotReady { reason }),
        (id(), any::<u32>(), costs()).prop_map(|(id, pid, costs)| Reply::Started { id, pid, costs }),
        (id(), text()).prop_map(|(id, reason)| Reply::NotStarted { id, reason }),
        (id(), option::of(text())).prop_map(|(id, problem)| Reply::Attached { id, problem }),
        (id(), exit()).prop_map(|(id, exit)| Reply::Exited { id, exit }),
    ];
    any_reply.prop_map(|reply| match reply {
        // As above.
        Reply::Ready(_)
        | Reply::NotReady { .. }
        | Reply::Started { .. }
        | Reply::NotStarted { .. }
        | Reply::Attached { .. }
        | Reply::Exited { .. } => reply,
    })
}

/// What the other side gets of these bytes, all of them, until it sees the end or gives up.
fn received<T: DeserializeOwned>(bytes: &[u8]) -> (Vec<T>, io::Result<()>) {
    let (mut a, b) = UnixStream::pair().expect("socket pair");
    // Of its own: the socket holds less than the longest.
    let bytes = bytes.to_vec();
    let writer = thread::spawn(move || a.write_all(&bytes));
    let mut messages = Vec::new();
    let ended = loop {
        match receive(&b) {
            Ok(Some((message, _))) => messages.push(message),
            Ok(None) => break Ok(()),
            Err(err) => break Err(err),
        }
    };
    drop(b);
    let _ = writer.join().expect("writes"); // An error if the reader gave up.
    (messages, ended)
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_le_bytes();
    [&length, body].concat()
}

proptest! {
    #[test]
    fn any_request_survives_the_socket_with_its_descriptors(request in request(), descriptors in 0..=DESCRIPTORS_MAX) {
        let (a, b) = UnixStream::pair().expect("socket pair");
        let pipes: Vec<_> = (0..descriptors).map(|_| io::pipe().expect("pipe")).collect();
        let (theirs, mut ours): (Vec<OwnedFd>, Vec<_>) =
            pipes.into_iter().map(|(read, write)| (OwnedFd::from(read), write)).unzip();
        send(&a, &request, &theirs).expect("send");
        let (back, received) = receive_request(&b).expect("receive").expect("open");
        prop_assert_eq!(format!("{back:?}"), format!("{request:?}"));
        prop_assert_eq!(received.len(), descriptors);
        // In their order.
        for (number, (write, read)) in (0u8..).zip(ours.iter_mut().zip(received)) {
            write.write_all(&[number]).expect("write");
            let mut byte = [0];
            File::from(read).read_exact(&mut byte).expect("read");
            prop_assert_eq!(byte, [number]);
        }
    }

    #[test]
    fn any_reply_survives_the_socket(reply in reply()) {
        let (a, b) = UnixStream::pair().expect("socket pair");
        send_reply(&a, &reply, &[]).expect("send");
        let (back, _) = receive_reply(&b).expect("receive").expect("open");
        prop_assert_eq!(format!("{back:?}"), format!("{reply:?}"));
    }

    #[test]
    fn messages_arrive_in_order_however_many_are_under_way(requests in vec(request(), 0..8)) {
        let bytes: Vec<u8> =
            requests.iter().flat_map(|request| framed(&serde_json::to_vec(request).expect("serializes"))).collect();
        let (back, ended) = received::<Request>(&bytes);
        prop_assert!(ended.is_ok());
        prop_assert_eq!(format!("{back:?}"), format!("{requests:?}"));
    }

    #[test]
    fn a_message_that_breaks_off_is_an_error(request in request(), cut: proptest::sample::Index) {
        let bytes = framed(&serde_json::to_vec(&request).expect("serializes"));
        let cut = 1 + cut.index(bytes.len() - 1);
        let (back, ended) = received::<Request>(&bytes[..cut]);
        prop_assert!(back.is_empty() && ended.is_err());
    }

    #[test]
    fn a_damaged_message_is_an_error_or_another_message(request in request(), at: proptest::sample::Index, byte: u8) {
        let mut body = serde_json::to_vec(&request).expect("serializes");
        let at = at.index(body.len());
        body[at] = byte;
        let (back, ended) = received::<Request>(&framed(&body));
        prop_assert_eq!(back.len() == 1, ended.is_ok());
    }

    #[test]
    fn garbage_is_an_error_not_a_panic(bytes in vec(any::<u8>(), 0..64), as_frame: bool) {
        let bytes = if as_frame { framed(&bytes) } else { bytes };
        let (requests, ended) = received::<Request>(&bytes);
        prop_assert!(requests.is_empty() && (ended.is_err() || bytes.is_empty()));
        let (replies, ended) = received::<Reply>(&bytes);
        prop_assert!(replies.is_empty() && (ended.is_err() || bytes.is_empty()));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read(length in MESSAGE_BYTES_MAX as u32 + 1..) {
        let (_, ended) = received::<Request>(&length.to_le_bytes());
        prop_assert_eq!(ended.map_err(|err| err.kind()), Err(io::ErrorKind::InvalidData));
    }
}

#[test]
fn the_longest_message_arrives_and_a_longer_one_is_not_sent() {
    let of_length = |length: usize| Reply::NotReady { reason: "x".repeat(length) };
    let overhead = serde_json::to_vec(&of_length(0)).expect("serializes").len();
    let longest = serde_json::to_vec(&of_length(MESSAGE_BYTES_MAX - overhead)).expect("serializes");
    let (back, ended) = received::<Reply>(&framed(&longest));
    assert!(back.len() == 1 && ended.is_ok());
    let (a, _b) = UnixStream::pair().expect("socket pair");
    let refused = send_reply(&a, &of_length(MESSAGE_BYTES_MAX - overhead + 1), &[]).expect_err("too long");
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn nesting_without_end_is_an_error() {
    let (back, ended) = received::<Request>(&framed("[".repeat(1 << 20).as_bytes()));
    assert!(back.is_empty() && ended.is_err());
}

#[test]
fn more_descriptors_than_any_message_has_are_refused_and_closed() {
    let (a, b) = UnixStream::pair().expect("socket pair");
    let pipes: Vec<_> = (0..=DESCRIPTORS_MAX).map(|_| io::pipe().expect("pipe")).collect();
    let (mut reads, writes): (Vec<_>, Vec<OwnedFd>) =
        pipes.into_iter().map(|(read, write)| (read, OwnedFd::from(write))).unzip();
    send(&a, &Request::Kill { id: ChildId(7) }, &writes).expect("send");
    drop(writes);
    assert!(receive_request(&b).is_err());
    for read in &mut reads {
        let mut bytes = Vec::new();
        // The end: nobody holds the other one. It would wait for ever if one had been kept.
        assert_eq!(read.read_to_end(&mut bytes).expect("read"), 0);
    }
}

#[test]
fn the_end_of_the_other_side_is_no_message() {
    let (a, b) = UnixStream::pair().expect("socket pair");
    drop(a);
    assert!(receive_request(&b).expect("closed").is_none());
}
