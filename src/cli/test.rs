//! `chatfn test`: a draft of a function, run once against the active version's runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::client::{Connection, MESSAGE_BYTES_MAX, block_on, plain, refused};
use super::invoke::read_event;
use super::output::{note, say};
use super::trial;
use crate::proto;
use crate::proto::invocation_service_client::InvocationServiceClient;
use crate::proto::test_function_response::Outcome;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// The app
    app: String,
    /// The trigger type, such as UserSentMessage
    trigger: String,
    /// The draft: a TypeScript or JavaScript file [default: the function as it is]
    #[arg(value_name = "FILE")]
    source: Option<PathBuf>,
    /// The event: a file, `-` for what comes from stdin, or JSON itself
    #[arg(long, default_value = "{}", value_name = "FILE|-|JSON")]
    event: String,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Exit code 1 also where the function failed; a denial is an answer.
///
/// # Errors
/// A file cannot be read, or the service cannot be reached, or it refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let source = args.source.as_ref().map(read).transpose()?.unwrap_or_default();
    let javascript = args.source.as_ref().is_some_and(|path| {
        path.extension().is_some_and(|extension| ["js", "mjs", "cjs"].iter().any(|known| extension == *known))
    });
    let request = proto::TestFunctionRequest {
        app_id: args.app.clone(),
        trigger_type: args.trigger.clone(),
        event_json: read_event(&args.event)?.into(),
        source,
        language: if javascript { "javascript" } else { "typescript" }.to_owned(),
    };
    block_on(async {
        let channel = args.connection.open().await?;
        let mut client = InvocationServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answer = client.test_function(args.connection.request(request)?).await;
        let answer = answer.map_err(|status| refused(&status))?.into_inner();
        if args.json {
            say(&trial::tested_json(&answer)?)?;
        } else {
            answer.warnings.iter().for_each(|warning| note(&plain(warning)));
            say(&trial::tested(&answer))?;
        }
        let failed = matches!(answer.outcome, Some(Outcome::Error(_)));
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    })
}
