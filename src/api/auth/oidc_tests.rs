//! A real issuer on loopback, with real keys.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::routing::get;
use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::json;

use super::*;

struct Signer {
    kid: &'static str,
    key: EncodingKey,
    jwk: Jwk,
}

fn signer(kid: &'static str) -> Signer {
    let pair = KeyPair::generate().expect("a key");
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("PEM");
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).expect("a JWK");
    jwk.common.key_id = Some(kid.to_owned());
    Signer { kid, key, jwk }
}

struct Issuer {
    url: String,
    keys: Arc<Mutex<Vec<Jwk>>>,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

async fn issuer(keys: &[&Signer]) -> Issuer {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let keys = Arc::new(Mutex::new(keys.iter().map(|signer| signer.jwk.clone()).collect::<Vec<_>>()));
    let asked = Arc::new(AtomicUsize::new(0));
    let (own, shown, count) = (url.clone(), Arc::clone(&keys), Arc::clone(&asked));
    let discovery = move || async move { Json(json!({ "issuer": own, "jwks_uri": format!("{own}/keys") })) };
    let jwks = move || async move {
        count.fetch_add(1, Ordering::SeqCst);
        Json(json!({ "keys": *shown.lock().expect("keys") }))
    };
    let router =
        axum::Router::new().route("/.well-known/openid-configuration", get(discovery)).route("/keys", get(jwks));
    let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
    Issuer { url, keys, asked, task }
}

fn oidc(issuer: &Issuer, retry: Duration) -> Oidc {
    let config =
        config::Oidc { issuer: Some(issuer.url.clone()), audience: Some("chatfn".to_owned()), ..Default::default() };
    Oidc { retry, ..Oidc::of(&config).expect("a client").expect("configured") }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn claims(issuer: &Issuer, change: Value) -> Value {
    let mut claims = json!({
        "iss": issuer.url, "aud": "chatfn", "exp": now() + 300, "scope": "openid invoke chatfn:manage", "app": "shop"
    });
    for (name, value) in change.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    claims
}

fn signed(by: &Signer, claims: &Value) -> String {
    let header = Header { kid: Some(by.kid.to_owned()), ..Header::new(Algorithm::ES256) };
    encode(&header, claims, &by.key).expect("signs")
}

#[tokio::test]
async fn a_token_of_the_issuer_is_mapped_to_apps_and_scopes() {
    let one = signer("one");
    let issuer = issuer(&[&one]).await;
    let oidc = oidc(&issuer, RETRY);
    let caller = async |change| oidc.caller(&signed(&one, &claims(&issuer, change))).await;
    let Caller::Federated { apps, scopes, .. } = caller(json!({})).await.expect("known") else { panic!("federated") };
    assert_eq!((apps[0].as_str(), scopes.to_string().as_str()), ("shop", "invoke manage"));
    let Caller::Federated { apps, .. } =
        caller(json!({ "app": ["shop", "no/app", "other"], "scope": ["publish"], "aud": ["x", "chatfn"] }))
            .await
            .expect("known")
    else {
        panic!("federated")
    };
    assert_eq!(apps.iter().map(AppId::as_str).collect::<Vec<_>>(), ["shop", "other"]);
    assert!(caller(json!({ "scope": "operator", "app": null })).await.expect("known").is_operator());
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 1, "keys are kept");
    for (wrong, expired) in [
        (json!({ "app": null }), false),
        (json!({ "aud": "another" }), false),
        (json!({ "iss": "http://evil.example" }), false),
        (json!({ "aud": null }), false),
        (json!({ "nbf": now() + 300 }), false),
        (json!({ "exp": null }), false),
        (json!({ "exp": now() - 300 }), true),
    ] {
        let refused = caller(wrong.clone()).await.expect_err("refused");
        assert_eq!(matches!(refused, Refused::TokenExpired), expired, "{wrong} {refused}");
        assert!(expired || matches!(refused, Refused::Invalid), "{wrong} {refused}");
    }
}

#[tokio::test]
async fn the_key_says_the_algorithm_and_not_the_token() {
    let (one, evil) = (signer("one"), signer("one"));
    let issuer = issuer(&[&one]).await;
    let oidc = oidc(&issuer, RETRY);
    let fine = claims(&issuer, json!({}));
    assert!(oidc.caller(&signed(&one, &fine)).await.is_ok());
    assert!(matches!(oidc.caller(&signed(&evil, &fine)).await, Err(Refused::Invalid)), "another key");
    // HMAC with what everybody knows.
    let public = serde_json::to_vec(&one.jwk).expect("JSON");
    let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::HS256) };
    let confused = encode(&header, &fine, &EncodingKey::from_secret(&public)).expect("signs");
    assert!(matches!(oidc.caller(&confused).await, Err(Refused::Invalid)));
    let good = signed(&one, &fine);
    let mut parts: Vec<&str> = good.split('.').collect();
    let none = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, r#"{"alg":"none","kid":"one"}"#);
    parts[0] = &none;
    for unsigned in [parts.join("."), format!("{}.{}.", parts[0], parts[1]), "a.b.c".to_owned()] {
        assert!(matches!(oidc.caller(&unsigned).await, Err(Refused::Invalid)), "{unsigned}");
    }
    let symmetric: Jwk = serde_json::from_value(json!({ "kty": "oct", "k": "AAAA", "kid": "x" })).expect("a JWK");
    assert!(usable(&symmetric).is_none());
}

#[tokio::test]
async fn new_keys_are_found_unknown_ones_flood_nobody_and_old_ones_go_on_while_the_issuer_is_away() {
    let (one, two, unknown) = (signer("one"), signer("two"), signer("unknown"));
    let issuer = issuer(&[&one]).await;
    let eager = oidc(&issuer, Duration::ZERO);
    let fine = claims(&issuer, json!({}));
    assert!(eager.caller(&signed(&one, &fine)).await.is_ok());
    issuer.keys.lock().expect("keys").push(two.jwk.clone());
    assert!(eager.caller(&signed(&two, &fine)).await.is_ok(), "fetched again for it");

    let patient = oidc(&issuer, RETRY);
    assert!(patient.caller(&signed(&one, &fine)).await.is_ok());
    let before = issuer.asked.load(Ordering::SeqCst);
    let token = signed(&unknown, &fine);
    let flood = futures_util::future::join_all((0..100).map(|_| patient.caller(&token))).await;
    assert!(flood.iter().all(|refused| matches!(refused, Err(Refused::Invalid))));
    assert_eq!(issuer.asked.load(Ordering::SeqCst), before);

    issuer.task.abort();
    let _ = issuer.task.await;
    eager.keys().fetched_at = Instant::now().checked_sub(AGE_MAX);
    assert!(eager.caller(&signed(&two, &fine)).await.is_ok(), "old, and all there is");
    let fresh = Oidc::of(&config::Oidc {
        issuer: Some(issuer.url.clone()),
        audience: Some("chatfn".to_owned()),
        ..Default::default()
    });
    let fresh = fresh.expect("a client").expect("configured");
    assert!(matches!(fresh.caller(&signed(&one, &fine)).await, Err(Refused::IssuerAway)));
}
