//! What must still work: a sandbox in which nothing works proves nothing.

use serde_json::json;

use crate::mode::Mode;
use crate::tenant::{Tenant, attack, by_mode};

in_every_mode! {
    what_people_use_works
}

async fn what_people_use_works(mode: Mode) {
    let Some(tenant) = Tenant::start(mode).await else { return };
    let works = [
        "use_threads",
        "use_wasm",
        "use_shared_memory",
        "use_zlib",
        "use_crypto",
        "use_timers",
        "use_tmp",
        "use_much_memory",
        "use_the_compiler",
        "use_intl",
        "use_tls_roots",
        "use_modules",
        "ask_about_itself",
        "ask_who_it_is",
        "count_processors",
        "look_up_localhost",
        "fail_to_spawn_as_on_a_usual_machine",
        "signal_itself",
    ];
    tenant.suffers(works.map(|name| attack(name, json!({}), "ok"))).await;
    // What is on a path could be anybody's.
    let denied = "EACCES: listen EACCES: permission denied";
    assert!(tenant.attempt("serve_on_a_path", json!({})).await.starts_with(denied));
    // Where functions share the network, none may take ports.
    let denied = "EACCES: listen EACCES: permission denied 127.0.0.1";
    tenant.suffers([by_mode("serve_itself", json!({}), "ok", denied)]).await;
    tenant.server.stop().await;
}
