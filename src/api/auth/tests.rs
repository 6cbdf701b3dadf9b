//! Callers, on a real store.

use std::time::Duration;

use axum::http::Extensions;

use super::*;
use crate::model::{Actor, ActorKind};
use crate::store::CreateCredential;
use crate::store::testing::{actor, app, at, store};

const OPERATOR: &str = "0123456789abcdef";

async fn created(store: &Store, of: Option<&str>, scopes: &[Scope]) -> (Credential, String) {
    let (secret, hash) = Auth::new_secret().expect("random");
    let credential = Credential {
        client_id: ClientId::new(),
        app: of.map(app),
        scopes: scopes.iter().copied().collect(),
        description: String::new(),
        created_at: at(0),
    };
    let created = store.create_credential(&credential, &hash, 9, true, actor()).await.expect("create");
    assert_eq!(created, CreateCredential::Created);
    (credential, secret)
}

fn unlimited() -> Failures {
    Failures::new(0, Vec::new())
}

fn invalid(result: Result<Caller, Refused>) -> bool {
    matches!(result, Err(Refused::Invalid))
}

#[tokio::test]
async fn a_token_holds_until_it_expires_or_its_credential_is_gone() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), Some(OPERATOR), unlimited(), None).await.expect("opens");
    assert_eq!(auth.bearer(OPERATOR, None, at(0)).await.expect("known"), Caller::Operator(Operator::Token));
    let (credential, secret) = created(&store, Some("shop"), &[Scope::Invoke, Scope::Publish]).await;
    let client_id = credential.client_id;
    let client = |scopes| Caller::Client { app: app("shop"), client_id, scopes };
    assert_eq!(auth.bearer(&secret, None, at(0)).await.expect("known"), client(credential.scopes));

    let fewer: Scopes = [Scope::Invoke].into_iter().collect();
    let token = auth.shared.key.issue(Claims { client_id, scopes: fewer }, at(0));
    assert_eq!(auth.bearer(&token, None, at(1)).await.expect("known"), client(fewer));
    let late = at(0) + tokens::LIFETIME + Duration::from_secs(3600);
    assert!(matches!(auth.bearer(&token, None, late).await, Err(Refused::Expired)));

    // Another service on the same store, with nothing in its memory.
    let restarted = Auth::open(store.clone(), None, unlimited(), None).await.expect("opens");
    assert_eq!(restarted.bearer(&token, None, at(1)).await.expect("known"), client(fewer));

    let mut revoked = Box::pin(auth.revoked(&client(fewer)));
    assert!(futures_util::poll!(&mut revoked).is_pending());
    assert!(store.revoke_credential(client_id, None, actor()).await.expect("revoke"));
    auth.forget(client_id);
    revoked.await;
    assert!(invalid(auth.bearer(&token, None, at(1)).await) && invalid(auth.bearer(&secret, None, at(1)).await));
}

#[tokio::test]
async fn the_credentials_of_a_deleted_app_are_forgotten_with_it_and_others_are_not() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), None, unlimited(), None).await.expect("opens");
    let (_, shop) = created(&store, Some("shop"), &[Scope::Manage]).await;
    let (_, other) = created(&store, Some("other"), &[Scope::Manage]).await;
    let (credential, operator) = created(&store, None, &[Scope::Operator]).await;
    assert!(auth.bearer(&shop, None, at(0)).await.is_ok() && auth.bearer(&other, None, at(0)).await.is_ok());
    assert_eq!(
        auth.bearer(&operator, None, at(0)).await.expect("known"),
        Caller::Operator(Operator::Credential(credential.client_id))
    );
    let known = Caller::Operator(Operator::Credential(credential.client_id));
    let mut revoked = Box::pin(auth.revoked(&known));
    assert!(futures_util::poll!(&mut revoked).is_pending());
    assert!(store.revoke_credential(credential.client_id, None, actor()).await.expect("revoke"));
    auth.forget(credential.client_id);
    revoked.await;
    assert!(store.delete_app(&app("shop"), actor()).await.expect("delete"));
    auth.forget_app(&app("shop"));
    assert!(invalid(auth.bearer(&shop, None, at(0)).await));
    assert!(auth.bearer(&other, None, at(0)).await.is_ok());
}

#[tokio::test]
async fn a_credential_that_was_seen_costs_no_look_into_the_store() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), None, unlimited(), None).await.expect("opens");
    let (credential, secret) = created(&store, Some("shop"), &[Scope::Invoke]).await;
    let claims = Claims { client_id: credential.client_id, scopes: credential.scopes };
    let token = auth.shared.key.issue(claims, at(0));
    assert!(auth.bearer(&secret, None, at(0)).await.is_ok());
    store.close().await;
    assert!(auth.bearer(&secret, None, at(0)).await.is_ok() && auth.bearer(&token, None, at(0)).await.is_ok());
    let unknown = Auth::new_secret().expect("random").0;
    assert!(matches!(auth.bearer(&unknown, None, at(0)).await, Err(Refused::Store(store::Error::Closed))));
}

#[tokio::test]
async fn without_an_operators_token_a_header_is_checked_all_the_same() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), None, unlimited(), None).await.expect("opens");
    let headers = |values: &[&str]| {
        values.iter().map(|value| (AUTHORIZATION, value.parse().expect("a value"))).collect::<HeaderMap>()
    };
    assert_eq!(auth.caller(&headers(&[]), &Extensions::new()).await.expect("open"), Caller::Operator(Operator::Local));
    let (_, secret) = created(&store, Some("shop"), &[Scope::Invoke]).await;
    let right = format!("bEARER  {secret}");
    assert!(matches!(auth.caller(&headers(&[&right]), &Extensions::new()).await, Ok(Caller::Client { .. })));
    for wrong in ["", "Bearer", "Bearer ", "Bearer x", &secret, &format!("Basic {secret}"), "Bearer cfa_AAAA"] {
        assert!(auth.caller(&headers(&[wrong]), &Extensions::new()).await.is_err(), "{wrong}");
    }
    assert!(
        invalid(auth.caller(&headers(&[&right, &right]), &Extensions::new()).await),
        "which of the two would count?"
    );
}

#[test]
fn a_client_may_what_its_scopes_say_with_its_own_app_alone() {
    let scopes: Scopes = [Scope::Invoke, Scope::Manage].into_iter().collect();
    let client = Caller::Client { app: app("shop"), client_id: ClientId::new(), scopes };
    assert_eq!(client.may(&app("shop"), &[Scope::Manage]), Ok(()));
    assert_eq!(client.may(&app("shop"), &[Scope::Publish, Scope::Manage]), Ok(()));
    let denied = client.may(&app("shop"), &[Scope::Publish]).expect_err("denied").to_string();
    assert_eq!(denied, "this takes the scope publish, and the token has invoke manage");
    let other = client.may(&app("other"), &[Scope::Manage]).expect_err("denied").to_string();
    assert_eq!(other, "the token is for app shop, not for app other");
    assert!(client.may_everything().is_err());
    for (given, allowed) in [("invoke", true), ("invoke manage", true), ("publish", false), ("operator", false)] {
        assert_eq!(client.may_give(given.parse().expect("scopes")).is_ok(), allowed, "{given}");
    }
    assert!(Caller::Operator(Operator::Token).may(&app("shop"), &[Scope::Publish]).is_ok());
    assert!(
        Caller::Operator(Operator::Token).may_everything().is_ok()
            && Caller::Operator(Operator::Token).may_give(scopes).is_ok()
    );
}

#[tokio::test]
async fn an_address_that_sends_wrong_tokens_is_held_off_and_what_was_seen_there_goes_on() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), Some(OPERATOR), Failures::new(3, Vec::new()), None).await.expect("opens");
    let (credential, secret) = created(&store, Some("shop"), &[Scope::Invoke]).await;
    let (_, unseen) = created(&store, Some("shop"), &[Scope::Invoke]).await;
    let claims = Claims { client_id: credential.client_id, scopes: credential.scopes };
    let token = auth.shared.key.issue(claims, at(0));
    let (bad, good) = (Some([192, 0, 2, 1].into()), Some([192, 0, 2, 2].into()));
    assert!(auth.bearer(&secret, bad, at(0)).await.is_ok());
    let wrong = Auth::new_secret().expect("random").0;
    for guess in ["nonsense", &wrong, "cfa_AAAA", &wrong] {
        assert!(invalid(auth.bearer(guess, bad, at(0)).await), "{guess}");
    }
    for guess in ["nonsense", &wrong, &unseen, OPERATOR] {
        assert!(matches!(auth.bearer(guess, bad, at(0)).await, Err(Refused::TooMany(_))), "{guess}");
    }
    let id = credential.client_id.to_string();
    assert!(matches!(auth.client(&id, &wrong, bad).await, Err(Refused::TooMany(_))));
    assert!(auth.client(&id, &secret, bad).await.is_ok());
    assert!(auth.bearer(&secret, bad, at(0)).await.is_ok() && auth.bearer(&token, bad, at(0)).await.is_ok());
    assert!(auth.bearer(&unseen, good, at(0)).await.is_ok() && auth.bearer(OPERATOR, good, at(0)).await.is_ok());
    assert!(invalid(auth.bearer("nonsense", good, at(0)).await));
}

#[test]
fn each_caller_is_an_actor_of_its_own() {
    let subject = || Subject { issuer: "https://id".to_owned(), id: "jane".to_owned() };
    let (client_id, scopes) = (ClientId::new(), Scopes::default());
    let expires_at = at(0);
    let id = client_id.to_string();
    for (caller, kind, id, issuer) in [
        (Caller::Operator(Operator::Local), ActorKind::Local, "", ""),
        (Caller::Operator(Operator::Token), ActorKind::OperatorToken, "", ""),
        (Caller::Operator(Operator::Credential(client_id)), ActorKind::OperatorCredential, &*id, ""),
        (Caller::Client { app: app("shop"), client_id, scopes }, ActorKind::Credential, &*id, ""),
        (
            Caller::Operator(Operator::Federated { subject: subject(), expires_at }),
            ActorKind::Oidc,
            "jane",
            "https://id",
        ),
        (
            Caller::Federated { apps: vec![app("shop")], scopes, expires_at, subject: subject() },
            ActorKind::Oidc,
            "jane",
            "https://id",
        ),
    ] {
        let expected = Actor { kind, id: id.to_owned(), issuer: issuer.to_owned(), request_id: "r-1".to_owned() };
        assert_eq!(caller.actor("r-1"), expected);
    }
}
