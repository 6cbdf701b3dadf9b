//! Entries and the changes that they tell of, on a real store.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::testing::{
    Place, actor, app, at, building, built, event, plain_store, ready_version, store, trigger,
};
use super::super::{AppChange, CreateCredential, DeadReason, Letters, NewEvent, NewVersion};
use super::*;
use crate::model::{ClientId, Credential, Scope, VersionNumber};

/// All entries, the oldest first: action, target and, after a `!`, why it failed.
async fn told(store: &Store) -> Vec<String> {
    entries(store, &AuditFilter::default()).await.iter().map(line).collect()
}

async fn entries(store: &Store, filter: &AuditFilter) -> Vec<AuditEntry> {
    let mut entries = store.audit_entries(filter, None, 1000).await.expect("list");
    entries.reverse();
    entries
}

fn line(entry: &AuditEntry) -> String {
    let failure = entry.failure.as_ref().map(|reason| format!(" !{reason}")).unwrap_or_default();
    format!("{} {}{failure}", entry.action, entry.target)
}

fn credential(of: Option<&str>) -> Credential {
    Credential {
        client_id: ClientId::new(),
        app: of.map(app),
        scopes: [Scope::Invoke].into_iter().collect(),
        description: "do not tell".to_owned(),
        created_at: at(0),
    }
}

async fn create(store: &Store, new: &Credential, count_max: u32) -> Result<CreateCredential, Error> {
    store
        .create_credential(
            new,
            new.client_id.as_bytes().repeat(2)[..].try_into().expect("32"),
            count_max,
            true,
            actor(),
        )
        .await
}

async fn publish(store: &Store, environment: &[(&str, &str)], activate: bool) -> VersionNumber {
    let environment: BTreeMap<_, _> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let new = NewVersion { environment, ..building("shop") };
    let number = store.begin_version(new.clone(), actor()).await.expect("begin");
    let activate = activate.then(|| at(0));
    store.finish_version(&built(&new, number), &Default::default(), activate, None, actor()).await.expect("finish");
    number
}

#[tokio::test]
async fn every_change_of_an_app_is_told_in_the_order_in_which_it_came() {
    let (_dir, store) = store().await;
    let one = ready_version(&store, "shop").await.number;
    let two = store.begin_version(building("shop"), actor()).await.expect("begin");
    store.fail_version(&app("shop"), two, ("hunter2", "VERIFICATION_FAILED"), actor()).await.expect("fail");
    store.fail_version(&app("shop"), two, ("again", "INTERNAL"), actor()).await.expect("fail");
    store.activate_version(&app("shop"), one, at(1), actor()).await.expect("activate");
    store.delete_version(&app("shop"), two, actor()).await.expect("delete");
    store.delete_version(&app("shop"), two, actor()).await.expect("delete");
    let change = AppChange {
        description: Some("hunter2".to_owned()),
        rate_per_second: Some(Some(7)),
        history_retention: Some(None),
        ..AppChange::default()
    };
    store.update_app(&app("shop"), change, actor()).await.expect("update");
    store.update_app(&app("shop"), AppChange::default(), actor()).await.expect("update");
    for _ in 0..2 {
        let texts = ("hunter2", "hunter2");
        store.create_function(&app("shop"), &trigger(), texts, at(1), actor()).await.expect("function");
        let other = crate::model::TriggerType::stored("Other".to_owned());
        store.create_function(&app("shop"), &other, texts, at(1), actor()).await.expect("function");
    }
    let dead = || NewEvent { dead: Some(DeadReason::Loop), ..event("shop") };
    for _ in 0..2 {
        store.enqueue(dead()).await.expect("enqueue");
    }
    store.redrive(&app("shop"), &Letters::ALL, 1, at(2), actor()).await.expect("redrive");
    store.purge_dead_letters(&app("shop"), &Letters::ALL, 9, actor()).await.expect("purge");
    store.purge_dead_letters(&app("shop"), &Letters::ALL, 9, actor()).await.expect("purge");
    let (kept, revoked, operators) = (credential(Some("shop")), credential(Some("shop")), credential(None));
    for new in [&kept, &revoked, &operators] {
        create(&store, new, 9).await.expect("create");
    }
    for _ in 0..2 {
        store.revoke_credential(revoked.client_id, Some(&app("shop")), actor()).await.expect("revoke");
    }
    store.record_refused_publish(&app("shop"), "INVALID_PATH", 0, actor()).await.expect("record");
    store.delete_app(&app("shop"), actor()).await.expect("delete");
    store.delete_app(&app("shop"), actor()).await.expect("delete");

    let expected = [
        "app.create ".to_owned(),
        "version.publish 1".to_owned(),
        "env.set TOKEN".to_owned(),
        "version.activate 1".to_owned(),
        "version.publish 2 !VERIFICATION_FAILED".to_owned(),
        "version.activate 1".to_owned(),
        "version.delete 2".to_owned(),
        "app.update ".to_owned(),
        "function.create Other".to_owned(),
        "dead_letters.redrive ".to_owned(),
        "dead_letters.purge ".to_owned(),
        format!("credential.create {}", kept.client_id),
        format!("credential.create {}", revoked.client_id),
        format!("credential.create {}", operators.client_id),
        format!("credential.revoke {}", revoked.client_id),
        "version.publish  !INVALID_PATH".to_owned(),
        "app.delete ".to_owned(),
        format!("credential.revoke {}", kept.client_id),
    ];
    assert_eq!(told(&store).await, expected);
    let all = entries(&store, &AuditFilter::default()).await;
    for entry in &all {
        let of_operators = entry.target == operators.client_id.to_string();
        assert_eq!(entry.app.as_ref().map(AppId::as_str), (!of_operators).then_some("shop"), "{entry:?}");
        let by = (entry.actor_kind.as_str(), entry.request_id.as_str());
        assert_eq!(by, ("operator_token", "of-a-test"), "{entry:?}");
        let written = format!("{entry:?}");
        assert!(!written.contains("hunter2") && !written.contains("do not tell"), "{written}");
    }
    let details = |n: usize| serde_json::from_str::<Value>(all[n].details.as_str()).expect("JSON");
    assert_eq!(details(5), json!({ "active_before": 1 }));
    let settings = json!({ "description": "changed", "history_retention_ms": null, "rate_per_second": 7 });
    assert_eq!(details(7), settings);
    assert_eq!((&details(9), &details(11)), (&json!({ "count": 1 }), &json!({ "scopes": "invoke" })));
    assert_eq!(details(16), json!({ "versions": 1, "credentials": 1 }));
    assert_eq!(details(17), json!({ "with": "app.delete" }));
}

#[tokio::test]
async fn a_publish_tells_which_variables_differ_from_what_serves_and_never_their_values() {
    let (_dir, store) = store().await;
    publish(&store, &[("A", "hunter2-a"), ("B", "hunter2-b"), ("C", "hunter2-c")], true).await;
    publish(&store, &[("A", "hunter2-a"), ("B", "hunter2-other"), ("D", "hunter2-d")], false).await;
    // Against the first again, which still serves.
    publish(&store, &[("A", "hunter2-a"), ("B", "hunter2-b"), ("C", "hunter2-c")], true).await;
    publish(&store, &[], true).await;
    let of_version = |number: u64| {
        let version = format!("\"version\":{number}");
        let store = store.clone();
        async move {
            let all = entries(&store, &AuditFilter::default()).await;
            let of = all.iter().filter(|entry| entry.details.as_str().contains(&version));
            of.map(line).collect::<Vec<_>>()
        }
    };
    assert_eq!(of_version(1).await, ["env.set A", "env.set B", "env.set C"]);
    assert_eq!(of_version(2).await, ["env.set B", "env.set D", "env.unset C"]);
    assert!(of_version(3).await.is_empty());
    assert_eq!(of_version(4).await, ["env.unset A", "env.unset B", "env.unset C"]);
    let all = format!("{:?}", entries(&store, &AuditFilter::default()).await);
    assert!(!all.contains("hunter2"), "{all}");
}

#[tokio::test]
async fn variables_that_cannot_be_compared_count_as_set_and_stop_no_publish() {
    let (dir, with_keys) = store().await;
    publish(&with_keys, &[("A", "1"), ("B", "2")], true).await;
    with_keys.close().await;
    let store = dir.open().await;
    publish(&store, &[("A", "1")], true).await;
    assert_eq!(told(&store).await[5..], ["version.publish 2", "env.set A", "env.unset B", "version.activate 2"]);
}

#[tokio::test]
async fn what_was_refused_leaves_no_entry() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    let before = told(&store).await;
    let more = credential(Some("new"));
    assert_eq!(create(&store, &more, 0).await.expect("create"), CreateCredential::TooMany);
    let gone = VersionNumber(9);
    assert!(store.activate_version(&app("shop"), gone, at(1), actor()).await.expect("activate").is_none());
    let on_nothing = NewVersion { base: Some(VersionNumber(0)), ..building("shop") };
    store.begin_version(on_nothing, actor()).await.expect_err("refused");
    assert!(!store.delete_app(&app("none"), actor()).await.expect("delete"));
    assert_eq!(told(&store).await, before);
}

/// As if the disk were full just then.
async fn refuse_entries(store: &Store) {
    let rename = "ALTER TABLE audit_entries RENAME TO audit_entries_away";
    db::query(rename).execute(store.write()).await.expect("renames");
}

#[tokio::test]
async fn nothing_changes_that_cannot_be_told() {
    let (_dir, store) = store().await;
    let one = ready_version(&store, "shop").await.number;
    let two = publish(&store, &[], false).await;
    let three = store.begin_version(building("shop"), actor()).await.expect("begin");
    let kept = credential(Some("shop"));
    create(&store, &kept, 9).await.expect("create");
    store.enqueue(NewEvent { dead: Some(DeadReason::Loop), ..event("shop") }).await.expect("enqueue");
    refuse_entries(&store).await;
    let (shop, new) = (app("shop"), credential(Some("shop")));
    let refused = [
        create(&store, &new, 9).await.err(),
        store.revoke_credential(kept.client_id, None, actor()).await.err(),
        store.activate_version(&shop, two, at(1), actor()).await.err(),
        store.delete_version(&shop, two, actor()).await.err(),
        store.update_app(&shop, AppChange { rate_burst: Some(Some(1)), ..AppChange::default() }, actor()).await.err(),
        store.fail_version(&shop, three, ("no", "NO"), actor()).await.err(),
        store.purge_dead_letters(&shop, &Letters::ALL, 9, actor()).await.err(),
        store.redrive(&shop, &Letters::ALL, 9, at(1), actor()).await.err(),
    ];
    assert!(refused.iter().all(Option::is_some), "{refused:?}");
    let published =
        store.finish_version(&built(&building("shop"), three), &Default::default(), None, None, actor()).await;
    assert!(published.is_err());
    store.begin_version(building("new"), actor()).await.expect_err("its app cannot be told of");
    assert_eq!(store.dead_letters(&shop, None, 9, 1 << 20).await.expect("list").0.len(), 1);
    // Its history goes first, and is not the audit log's.
    store.delete_app(&shop, actor()).await.expect_err("its end cannot be told of");

    let now = store.app(&shop).await.expect("read").expect("it is there");
    assert_eq!((now.active, now.rate.burst), (Some(one), None));
    assert_eq!(store.list_versions(&shop, None, 9).await.expect("list").len(), 3);
    let credentials = store.list_credentials(Some(&shop), None, 9).await.expect("list");
    assert_eq!(credentials.iter().map(|(_, kept)| kept.client_id).collect::<Vec<_>>(), [kept.client_id]);
    assert_eq!(store.app(&app("new")).await.expect("read"), None);
}

#[tokio::test]
async fn an_entry_is_small_whatever_it_is_about() {
    let (_dir, store) = store().await;
    let mut tx = store.begin("test").await.expect("begin");
    let long = Record::new(actor(), None, AuditAction::KeysRotate).target("x".repeat(1000));
    long.details(json!({ "names": ["y".repeat(DETAILS_BYTES_MAX)] })).write(&mut tx).await.expect("write");
    tx.commit().await.expect("commit");
    let all = entries(&store, &AuditFilter::default()).await;
    assert_eq!((all[0].target.len(), all[0].details.as_str()), (TARGET_CHARS_MAX, r#"{"too_long":true}"#));
}

#[tokio::test]
async fn an_app_does_not_see_what_another_of_its_name_did() {
    let (_dir, store) = store().await;
    ready_version(&store, "shop").await;
    store.delete_app(&app("shop"), actor()).await.expect("delete");
    ready_version(&store, "other").await;
    store.begin_version(building("shop"), actor()).await.expect("begin");
    let of_shop = AuditFilter { app: Some(app("shop")), ..AuditFilter::default() };
    assert_eq!(entries(&store, &of_shop).await.len(), 6);
    let own = AuditFilter { own: true, ..of_shop.clone() };
    assert_eq!(entries(&store, &own).await.iter().map(line).collect::<Vec<_>>(), ["app.create "]);
    // Its beginning is no longer kept: then nothing older is.
    store.purge_audit(SystemTime::now() + Duration::from_secs(60), 1000).await.expect("purge");
    store.delete_version(&app("shop"), VersionNumber(1), actor()).await.expect("building");
    store.fail_version(&app("shop"), VersionNumber(1), ("no", "NO"), actor()).await.expect("fail");
    assert_eq!(entries(&store, &own).await.iter().map(line).collect::<Vec<_>>(), ["version.publish 1 !NO"]);
}

#[tokio::test]
async fn entries_are_found_page_by_page_and_by_what_is_asked_for() {
    let (_dir, store) = store().await;
    let by = |id: &str| Actor { kind: ActorKind::Credential, id: id.to_owned(), ..Actor::service() };
    let mut moments = Vec::new();
    for n in 0..7 {
        moments.push(SystemTime::now());
        let who = by(if n % 2 == 0 { "even" } else { "odd" });
        store.record_refused_publish(&app("shop"), &format!("R{n}"), 0, &who).await.expect("record");
        // To the millisecond: the next one is in another.
        while millis(SystemTime::now()) <= millis(moments[n]) + 1 {
            tokio::task::yield_now().await;
        }
    }
    store.create_function(&app("other"), &trigger(), ("", ""), at(0), actor()).await.expect("function");
    let reasons = async |filter: AuditFilter| {
        let entries = entries(&store, &filter).await;
        entries.into_iter().map(|entry| entry.failure.unwrap_or(entry.action)).collect::<Vec<_>>()
    };
    let any = AuditFilter::default;
    let of_shop = || AuditFilter { app: Some(app("shop")), ..any() };
    assert_eq!(reasons(of_shop()).await.len(), 7);
    assert_eq!(reasons(AuditFilter { actor_id: Some("odd".to_owned()), ..any() }).await, ["R1", "R3", "R5"]);
    let by_token = AuditFilter { actor_kind: Some(ActorKind::OperatorToken), ..any() };
    assert_eq!(reasons(by_token).await, ["app.create", "function.create"]);
    let created = AuditFilter { action: Some(AuditAction::AppCreate), ..any() };
    assert_eq!(reasons(created).await, ["app.create"]);
    let between = AuditFilter { from: Some(moments[2]), until: Some(moments[5]), ..of_shop() };
    assert_eq!(reasons(between).await, ["R2", "R3", "R4"]);

    let mut pages = Vec::new();
    let mut before = None;
    loop {
        let page = store.audit_entries(&of_shop(), before, 3).await.expect("a page");
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        pages.push(page.into_iter().filter_map(|entry| entry.failure).collect::<Vec<_>>().join(" "));
    }
    assert_eq!(pages, ["R6 R5 R4", "R3 R2 R1", "R0"]);

    let purged = async |before, limit| store.purge_audit(before, limit).await.expect("purge");
    assert_eq!((purged(moments[5], 3).await, purged(moments[5], 3).await, purged(moments[5], 3).await), (3, 2, 0));
    assert_eq!(reasons(of_shop()).await, ["R5", "R6"]);
}

#[tokio::test]
async fn a_rotation_of_keys_is_one_entry_and_tells_how_far_it_came() {
    let (_dir, store) = store().await;
    for of in ["a", "b"] {
        ready_version(&store, of).await;
    }
    store.service_key("tokens", [7; 32]).await.expect("a key");
    let command = Actor::command("root".to_owned());
    let done = store.rotate_keys(&command, |_| {}).await.expect("rotates");
    let rotated = AuditFilter { action: Some(AuditAction::KeysRotate), ..AuditFilter::default() };
    let all = entries(&store, &rotated).await;
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].app.as_ref(), all[0].target.as_str()), (None, done.key_id.as_str()));
    assert_eq!((all[0].actor_kind.as_str(), all[0].actor_id.as_str()), ("command", "root"));
    let details: Value = serde_json::from_str(all[0].details.as_str()).expect("JSON");
    assert_eq!(details, json!({ "data_keys": 0, "values": 0, "service_keys": 0, "failed": 0, "ended": true }));
}

#[tokio::test]
async fn a_publish_whose_service_is_gone_is_told_with_whoever_began_it() {
    let (dir, store): (Place, Store) = plain_store().await;
    let who = Actor {
        kind: ActorKind::Oidc,
        id: "jane".to_owned(),
        issuer: "https://id".to_owned(),
        request_id: "r".to_owned(),
    };
    store.begin_version(building("shop"), &who).await.expect("begin");
    // As a service of the version before this one does.
    store.begin_version(building("shop"), &who).await.expect("begin");
    db::query("UPDATE versions SET published_by = NULL WHERE number = 2").execute(store.write()).await.expect("update");
    store.close().await;
    let store = dir.open().await;
    assert_eq!(store.take_over(Duration::ZERO, at(9)).await.expect("take over").builds, 2);
    let failed = AuditFilter { action: Some(AuditAction::VersionPublish), ..AuditFilter::default() };
    let mut all = entries(&store, &failed).await;
    all.sort_by(|a, b| a.target.cmp(&b.target));
    let told: Vec<_> =
        all.iter().map(|entry| (line(entry), entry.actor_kind.as_str(), entry.actor_id.as_str())).collect();
    let line = |number: u64| format!("version.publish {number} !SERVICE_STOPPED");
    assert_eq!(told, [(line(1), "oidc", "jane"), (line(2), "service", "")]);
    assert_eq!((all[0].actor_issuer.as_str(), all[0].request_id.as_str()), ("https://id", "r"));
}
