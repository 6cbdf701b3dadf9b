//! Checks the types of what serves, after it serves: a compiler takes seconds, and nobody is to wait for it.

use tokio::sync::watch::Receiver;

use super::say;
use crate::cli::client::{plain, refused};
use crate::cli::local::Local;
use crate::proto;

/// Tells the type errors of each version, for ever. A newer one ends the check of the one before.
pub async fn check(local: &Local, mut served: Receiver<Option<proto::VersionSpec>>) {
    let (mut first, mut wrong) = (true, false);
    while served.changed().await.is_ok() {
        let Some(spec) = served.borrow_and_update().clone() else { continue };
        if !spec.files.keys().any(|path| is_typescript(path)) {
            continue;
        }
        if std::mem::take(&mut first) {
            say(format_args!("checking types; the first time that fetches TypeScript\n"));
        }
        let mut newer = served.clone();
        tokio::select! {
            checked = local.type_errors(spec) => wrong = tell(checked, wrong),
            _ = newer.changed() => {}
        }
    }
    std::future::pending::<()>().await;
}

/// Whether there are any. That there are none is told where there were some, or where nobody knew.
fn tell(checked: Result<proto::CheckTypesResponse, tonic::Status>, wrong: bool) -> bool {
    match checked {
        Ok(found) if found.diagnostics.is_empty() => {
            if wrong {
                say(format_args!("the types are right\n"));
            }
            false
        }
        Ok(found) => {
            for one in &found.diagnostics {
                let place = if one.file.is_empty() {
                    String::new()
                } else {
                    format!("{}:{}:{}: ", one.file, one.line, one.column)
                };
                say(format_args!("{}\n", plain(&format!("{place}{}: {}\n{}", one.code, one.message, one.frame))));
            }
            let more = if found.more > 0 { format!(", and {} more", found.more) } else { String::new() };
            say(format_args!("type errors: {}{more}; it serves all the same\n", found.diagnostics.len()));
            true
        }
        Err(status) => {
            say(format_args!("the types were not checked: {:#}\n", refused(&status)));
            wrong
        }
    }
}

fn is_typescript(path: &str) -> bool {
    [".ts", ".mts", ".cts"].iter().any(|extension| path.ends_with(extension)) && !path.ends_with(".d.ts")
}
