//! Callers, on a real store.

use std::time::Duration;

use super::*;
use crate::store::CreateCredential;
use crate::store::testing::{app, at, store};

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
    let created = store.create_credential(&credential, &hash, 9, true).await.expect("create");
    assert_eq!(created, CreateCredential::Created);
    (credential, secret)
}

fn invalid(result: Result<Caller, Refused>) -> bool {
    matches!(result, Err(Refused::Invalid))
}

#[tokio::test]
async fn a_token_holds_until_it_expires_or_its_credential_is_gone() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), Some(OPERATOR)).await.expect("opens");
    assert_eq!(auth.bearer(OPERATOR, at(0)).await.expect("known"), Caller::Operator);
    let (credential, secret) = created(&store, Some("shop"), &[Scope::Invoke, Scope::Publish]).await;
    let client_id = credential.client_id;
    let client = |scopes| Caller::Client { app: app("shop"), client_id, scopes };
    assert_eq!(auth.bearer(&secret, at(0)).await.expect("known"), client(credential.scopes));

    let fewer: Scopes = [Scope::Invoke].into_iter().collect();
    let token = auth.shared.key.issue(Claims { client_id, scopes: fewer }, at(0));
    assert_eq!(auth.bearer(&token, at(1)).await.expect("known"), client(fewer));
    let late = at(0) + tokens::LIFETIME + Duration::from_secs(3600);
    assert!(matches!(auth.bearer(&token, late).await, Err(Refused::Expired)));

    // Another service on the same store, with nothing in its memory.
    let restarted = Auth::open(store.clone(), None).await.expect("opens");
    assert_eq!(restarted.bearer(&token, at(1)).await.expect("known"), client(fewer));

    let mut revoked = Box::pin(auth.revoked(&client(fewer)));
    assert!(futures_util::poll!(&mut revoked).is_pending());
    assert!(store.revoke_credential(client_id, None).await.expect("revoke"));
    auth.forget(client_id);
    revoked.await;
    assert!(invalid(auth.bearer(&token, at(1)).await) && invalid(auth.bearer(&secret, at(1)).await));
}

#[tokio::test]
async fn the_credentials_of_a_deleted_app_are_forgotten_with_it_and_others_are_not() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), None).await.expect("opens");
    let (_, shop) = created(&store, Some("shop"), &[Scope::Manage]).await;
    let (_, other) = created(&store, Some("other"), &[Scope::Manage]).await;
    let (_, operator) = created(&store, None, &[Scope::Operator]).await;
    assert!(auth.bearer(&shop, at(0)).await.is_ok() && auth.bearer(&other, at(0)).await.is_ok());
    assert_eq!(auth.bearer(&operator, at(0)).await.expect("known"), Caller::Operator);
    assert!(store.delete_app(&app("shop")).await.expect("delete"));
    auth.forget_app(&app("shop"));
    assert!(invalid(auth.bearer(&shop, at(0)).await));
    assert!(auth.bearer(&other, at(0)).await.is_ok());
}

#[tokio::test]
async fn a_credential_that_was_seen_costs_no_look_into_the_store() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), None).await.expect("opens");
    let (credential, secret) = created(&store, Some("shop"), &[Scope::Invoke]).await;
    let claims = Claims { client_id: credential.client_id, scopes: credential.scopes };
    let token = auth.shared.key.issue(claims, at(0));
    assert!(auth.bearer(&secret, at(0)).await.is_ok());
    store.close().await;
    assert!(auth.bearer(&secret, at(0)).await.is_ok() && auth.bearer(&token, at(0)).await.is_ok());
    let unknown = Auth::new_secret().expect("random").0;
    assert!(matches!(auth.bearer(&unknown, at(0)).await, Err(Refused::Store(store::Error::Closed))));
}

#[tokio::test]
async fn without_an_operators_token_a_header_is_checked_all_the_same() {
    let (_dir, store) = store().await;
    let auth = Auth::open(store.clone(), None).await.expect("opens");
    let headers = |values: &[&str]| {
        values.iter().map(|value| (AUTHORIZATION, value.parse().expect("a value"))).collect::<HeaderMap>()
    };
    assert_eq!(auth.caller(&headers(&[])).await.expect("open"), Caller::Operator);
    let (_, secret) = created(&store, Some("shop"), &[Scope::Invoke]).await;
    let right = format!("bEARER  {secret}");
    assert!(matches!(auth.caller(&headers(&[&right])).await, Ok(Caller::Client { .. })));
    for wrong in ["", "Bearer", "Bearer ", "Bearer x", &secret, &format!("Basic {secret}"), "Bearer cfa_AAAA"] {
        assert!(auth.caller(&headers(&[wrong])).await.is_err(), "{wrong}");
    }
    assert!(invalid(auth.caller(&headers(&[&right, &right])).await), "which of the two would count?");
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
    assert!(Caller::Operator.may(&app("shop"), &[Scope::Publish]).is_ok());
    assert!(Caller::Operator.may_everything().is_ok() && Caller::Operator.may_give(scopes).is_ok());
}
