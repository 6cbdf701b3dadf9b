//! Files of the service, of other tenants and of the machine; the app's own; and how much can be written.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::TestServer;
use crate::mode::Mode;
use crate::tenant::{Tenant, attack, by_mode};

in_every_mode! {
    nothing_is_read_that_is_not_its_own
    nothing_is_written_but_temporary_files
    temporary_files_are_limited
}

fn at(path: &str) -> Value {
    json!({ "path": path })
}

/// In the data directory, by its end.
fn find(server: &TestServer, end: &str) -> String {
    let mut pending = vec![server.data().to_owned()];
    while let Some(path) = pending.pop() {
        if path.ends_with(end) {
            return path.display().to_string();
        }
        pending.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    panic!("there is no {end} in {}", server.data().display());
}

async fn nothing_is_read_that_is_not_its_own(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    let other = r#"exports.handleEvent = () => "another tenant's code""#;
    tenant.server.deploy("victim", &[("functions/UserAttemptedStartSession.js", other), ("lib/key.txt", "key")]).await;
    let (database, key) = (find(&tenant.server, "chatfn.db"), find(&tenant.server, "lib/key.txt"));
    let data = tenant.server.data().join("data").display().to_string();
    // Outside of what the service has: readable by everybody on this machine.
    let public = tempfile::Builder::new().prefix("public").tempfile_in("/var/tmp").expect("a file");
    std::fs::set_permissions(public.path(), std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let public = public.path().display().to_string();
    tenant
        .suffers([
            by_mode("read_shadow", json!({}), "ENOENT", "EACCES"),
            by_mode("read", at(&database), "ENOENT", "EACCES"),
            by_mode("read", at(&key), "ENOENT", "EACCES"),
            by_mode("read", at(&public), "ENOENT", "EACCES"),
            by_mode("read", at(&format!("/proc/self/root{key}")), "ENOENT", "EACCES"),
            by_mode("read", at(&format!("/proc/self/cwd/../../../../../../../../..{key}")), "ENOENT", "EACCES"),
            by_mode("list", at(&data), "ENOENT", "EACCES"),
            by_mode("list", at("/tmp"), "ok, 0 entries", "EACCES"),
            // Landlock does not hide that a file exists, nor what stat tells.
            by_mode("stat", at(&database), "ENOENT", "ok"),
            by_mode("truncate", at(&database), "ENOENT", "EACCES"),
            by_mode("hard_link", at(&database), "ENOENT", "EXDEV"),
            by_mode("remove", at(&key), "ENOENT", "EACCES"),
            attack("read_service_account", json!({}), "ENOENT"),
            by_mode("read_homes", json!({}), "0 ENOENT", "EACCES"),
            by_mode("read_host_files", json!({}), "ENOENT", "EACCES ENOENT"),
            by_mode("list_root", json!({}), "nothing else", "EACCES"),
            by_mode("users_of_the_host", json!({}), "1 users", "EACCES"),
            by_mode("follow_link", json!({}), "EACCES", "EACCES"),
            by_mode("follow_own_root", json!({}), "ENOENT", "EACCES"),
            by_mode("climb_up", json!({}), "ENOENT", "EACCES"),
            by_mode("open_devices", json!({}), "ENOENT", "EACCES EISDIR ENOENT"),
        ])
        .await;
    tenant.server.stop().await;
}

async fn nothing_is_written_but_temporary_files(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    let database = find(&tenant.server, "chatfn.db");
    let shim = if mode.has_root() { "/shim".to_owned() } else { find(&tenant.server, "data/shim") };
    tenant
        .suffers([
            by_mode("write_app", json!({}), "EROFS", "EACCES").in_full("EACCES EROFS"),
            by_mode("change_modes", json!({ "path": database }), "ENOENT EROFS", "ok"),
            attack("change_mode_of_open_file", json!({}), "as it was"),
            by_mode("write_shim", at(&shim), "EROFS", "EACCES"),
            attack("write_node", json!({}), "EACCES"),
            attack("write_own_memory_file", json!({}), "EACCES"),
            by_mode("write_elsewhere", json!({}), "ENOENT EROFS", "EACCES ENOENT"),
            by_mode("write", at(&database), "ENOENT", "EACCES"),
            attack("write_zeroes", json!({}), "EACCES"),
            by_mode("load_code_from_tmp", json!({}), "ERR_DLOPEN_FAILED", "ok"),
            by_mode("set_user_id", json!({}), "4755", "644"),
        ])
        .await;
    // Where it shares the service's user it was told that modes changed: they did not.
    let mode_of = |path: &str| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode_of(&database), 0o600);
    assert_eq!(mode_of(&find(&tenant.server, "attacks/files.js")) & 0o444, 0o444);
    assert_eq!(tenant.attempt("use_tmp", json!({})).await, "ok");
    tenant.server.stop().await;
}

async fn temporary_files_are_limited(mode: Mode) {
    const TMP_BYTES: u64 = 8 << 20;
    let Some(tenant) = Tenant::with(mode, |limits| limits.tmp_bytes = TMP_BYTES).await else { return };
    let limit = json!({ "tmp_bytes": TMP_BYTES });
    tenant
        .suffers([
            by_mode("fill_tmp", limit.clone(), "ENOSPC", "ok"),
            attack("one_large_file", limit, "EFBIG"),
            by_mode("many_files", json!({}), "ENOSPC", "ok"),
        ])
        .await;
    assert_eq!(tenant.attempt("use_tmp", json!({})).await, "ok");
    tenant.server.stop().await;
}
