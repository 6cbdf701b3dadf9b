//! What recorded invocations did is not to be done again by running them again: a replay reaches nothing unless it is allowed.

use chatfn::proto::replay_invocations_response::Event;
use chatfn::proto::{self, invocation_service_client::InvocationServiceClient};
use tonic::{Code, Status};

use crate::harness::{Answered, TestApp, TestServer, reason};
use crate::mode::Mode;
use crate::publish_request::Publish;
use crate::world::{CONFIGURATION, World};

in_modes_with_a_supervisor! {
    a_replay_sends_nothing_unless_it_is_allowed
}

const SENDS: &str = "exports.handleEvent = async () => {\n  try { return await (await fetch('http://203.0.113.10/')).text() } \
                     catch { return 'away' }\n}";

async fn replay(app: &TestApp, allow_egress: bool) -> Result<proto::ReplaySummary, Status> {
    let request = proto::ReplayInvocationsRequest { app_id: app.id.clone(), allow_egress, ..Default::default() };
    let mut stream = InvocationServiceClient::new(app.channel()).replay_invocations(request).await?.into_inner();
    loop {
        if let Event::Summary(summary) = stream.message().await?.expect("a summary").event.expect("an event") {
            return Ok(summary);
        }
    }
}

async fn a_replay_sends_nothing_unless_it_is_allowed(mode: Mode) {
    let Ok(world) = World::new().map_err(|reason| mode.skip(reason)) else { return };
    let Some(server) = mode.start_in(Some(&world), CONFIGURATION, &[]).await else { return };
    let app = Publish::login("demo", SENDS).on(&server).await;
    let sent = || world.what_it_heard().matches("connection to").count();
    assert!(app.login("jane").await.json().as_str().is_some_and(|text| text.starts_with("hello")));
    assert_eq!(sent(), 1);
    let summary = replay(&app, false).await.expect("replays");
    assert_eq!((summary.replayed, summary.changed, sent()), (1, 1, 1));
    let gated = |allow_egress| {
        let verification = Some(proto::Verification { replay_last: 10, max_changed: 0, allow_egress });
        proto::PublishVersionRequest { verification, ..Publish::login("demo", SENDS).0 }
    };
    let refused = server.publish(gated(false)).await.expect_err("it comes out otherwise");
    assert_eq!((reason(&refused).1.as_str(), sent()), ("REPLAY_CHANGED", 1));
    let summary = replay(&app, true).await.expect("replays");
    assert_eq!((summary.replayed, summary.changed, sent()), (1, 0, 2));
    server.publish(gated(true)).await.expect("it comes out the same");
    assert_eq!(sent(), 3);
    server.stop().await;
}

/// Where workers are in the host's network, nothing would keep them from it.
#[tokio::test]
async fn without_a_network_of_its_own_a_replay_has_to_be_allowed_to_send() {
    let Some(server) = Mode::Landlock.start_in(None, "", &[]).await else { return };
    refused_unless_allowed(server).await;
}

async fn refused_unless_allowed(server: TestServer) {
    let app = Publish::login("demo", "exports.handleEvent = () => 1").on(&server).await;
    app.login("jane").await;
    let refused = replay(&app, false).await.expect_err("nothing confines it");
    assert_eq!(reason(&refused), (Code::FailedPrecondition, "EGRESS_NOT_CONFINED".to_owned()));
    assert!(refused.message().contains("allow_egress"), "{}", refused.message());
    assert_eq!(replay(&app, true).await.expect("replays").replayed, 1);
    server.stop().await;
}
