//! Every call refuses a message that is too large, with a reason, before it reads it.

use chatfn::proto;
use tonic::Code;
use tonic_prost::ProstCodec;

use crate::credentials_scopes::calls;
use crate::harness::{TestServer, reason};

#[tokio::test]
async fn no_call_takes_a_message_of_any_size() {
    let server = TestServer::with(&["publish_bytes_max=1048576", "event_bytes_max=1024"]).await;
    // More than any of them takes: an event's limit, and the 16 MiB that are still refused with a reason of its own.
    let message = proto::GetAppRequest { app_id: "x".repeat(17 << 20) };
    for (name, _) in calls() {
        let mut client = tonic::client::Grpc::new(server.channel.clone());
        client.ready().await.expect("ready");
        let path = format!("/chatfunctions.v1.{name}").parse().expect("a path");
        let request = tonic::Request::new(message.clone());
        let answer = client.server_streaming(request, path, ProstCodec::<_, ()>::default()).await;
        let refused = match answer {
            Err(status) => status,
            Ok(stream) => stream.into_inner().message().await.expect_err(&name),
        };
        assert_eq!(reason(&refused), (Code::InvalidArgument, "REQUEST_TOO_LARGE".to_owned()), "{name}: {refused}");
    }
    server.stop().await;
}
