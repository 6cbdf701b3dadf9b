//! Tokens of an issuer through the front door; what makes one good is tested beside the code.

use axum::Json;
use axum::routing::get;
use chatfn::proto;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;
use tonic::Code;

use crate::audit::listed;
use crate::credentials::{bearer, create, wanted};
use crate::harness::{LOGIN, TestServer, reason};

#[tokio::test]
async fn a_token_of_the_issuer_opens_what_its_claims_say_and_nothing_is_open_without() {
    let pair = rcgen::KeyPair::generate().expect("a key");
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("PEM");
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).expect("a JWK");
    jwk.common.key_id = Some("one".to_owned());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let issuer = format!("http://{}", listener.local_addr().expect("an address"));
    let keys = json!({ "keys": [jwk] });
    let router = axum::Router::new().route("/keys", get(move || async move { Json(keys) }));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
    let token = |claims: serde_json::Value| {
        let mut all = json!({ "iss": issuer, "aud": "chatfn", "exp": 4_000_000_000_u64 });
        all.as_object_mut().expect("an object").extend(claims.as_object().expect("an object").clone());
        let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, &all, &key).expect("signs")
    };

    let settings = [format!("oidc.issuer={issuer}"), format!("oidc.jwks_url={issuer}/keys")];
    let server = TestServer::with(&[&settings[0], &settings[1], "oidc.audience=chatfn"]).await;
    let operator = token(json!({ "scope": "openid operator" }));
    create(&server, bearer(wanted("demo", &["invoke"]), &operator)).await.expect("an operator");
    let by = async |kind: &str, id: &str| {
        let request = proto::ListAuditEntriesRequest {
            actor_kind: kind.to_owned(),
            actor_id: id.to_owned(),
            ..Default::default()
        };
        let entries = listed(&server, bearer(request, &operator)).await;
        entries.into_iter().map(|entry| (entry.action, entry.actor.unwrap_or_default().issuer)).collect::<Vec<_>>()
    };
    let made = |action: &str| (action.to_owned(), issuer.clone());
    assert_eq!(by("oidc", "").await, [made("credential.create"), made("app.create")]);
    let jane = token(json!({ "scope": "manage", "app": "demo", "sub": "jane" }));
    create(&server, bearer(wanted("demo", &["manage"]), &jane)).await.expect("it has that");
    assert_eq!(by("oidc", "jane").await, [made("credential.create")]);
    let open = server.apps().list_apps(proto::ListAppsRequest::default()).await.expect_err("no token");
    assert_eq!(open.code(), Code::Unauthenticated);

    let invoke = async |token: &str| {
        let call = server.app("demo").call(LOGIN, r#"{"username":"jane"}"#);
        server.invocations().invoke(bearer(call, token)).await.map(|_| ()).map_err(|status| reason(&status).0)
    };
    assert_eq!(invoke(&token(json!({ "scope": "invoke", "app": ["demo", "other"] }))).await, Ok(()));
    assert_eq!(invoke(&token(json!({ "scope": "invoke", "app": "other" }))).await, Err(Code::PermissionDenied));
    assert_eq!(invoke(&token(json!({ "scope": "publish", "app": "demo" }))).await, Err(Code::PermissionDenied));
    for wrong in [json!({ "aud": "x" }), json!({ "iss": "x" }), json!({ "exp": 1 })] {
        let mut claims = json!({ "scope": "invoke", "app": "demo" });
        claims.as_object_mut().expect("an object").extend(wrong.as_object().expect("an object").clone());
        assert_eq!(invoke(&token(claims)).await, Err(Code::Unauthenticated), "{wrong}");
    }
    let reader = token(json!({ "scope": "manage", "app": "demo" }));
    let rest = reqwest::Client::new().get(format!("{}/v1/runtimes/nodejs/versions", server.address));
    assert!(rest.bearer_auth(reader).send().await.expect("an answer").status().is_success());
    server.stop().await;
    serving.abort();
}
