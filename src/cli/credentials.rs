//! `chatfn credentials`: who may act for an app.

use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::client::{Connection, block_on, refused};
use super::output::{cell, moment, note, say};
use crate::proto;
use crate::proto::app_service_client::AppServiceClient;

const DESCRIPTION_CHARS_MAX: usize = 200;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a credential and print its secret, which is not shown again.
    ///
    /// The secret is a token by itself (CHATFN_TOKEN); OAuth clients trade it for access tokens at /oauth/token. The app begins to exist
    /// if it did not.
    Create(Create),
    /// List an app's credentials, the oldest first.
    List(List),
    /// End a credential, and every access token that it got, at once.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
struct Create {
    #[command(flatten)]
    connection: Connection,
    /// The app; none with the scope operator
    app: Option<String>,
    /// What it may do: invoke, publish or manage (may be repeated), or operator: everything, of all apps
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// What it is for
    #[arg(long, default_value = "")]
    description: String,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    connection: Connection,
    /// The app; none: the operators' own credentials
    app: Option<String>,
    /// Print JSON, one object a line, instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Revoke {
    #[command(flatten)]
    connection: Connection,
    /// The credential
    client_id: String,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// # Errors
/// The service cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    block_on(async {
        match &args.command {
            Command::Create(args) => create(args).await,
            Command::List(args) => list(args).await,
            Command::Revoke(args) => revoke(args).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn client(connection: &Connection) -> anyhow::Result<AppServiceClient<Channel>> {
    Ok(AppServiceClient::new(connection.open().await?))
}

async fn create(args: &Create) -> anyhow::Result<()> {
    let request = proto::CreateCredentialRequest {
        app_id: args.app.clone().unwrap_or_default(),
        scopes: args.scopes.clone(),
        description: args.description.clone(),
    };
    let answer = client(&args.connection).await?.create_credential(args.connection.request(request)?).await;
    let proto::CreateCredentialResponse { client_id, client_secret, credential } =
        answer.map_err(|status| refused(&status))?.into_inner();
    let credential = credential.context("a credential")?;
    if args.json {
        let mut shown = as_json(&credential);
        shown["client_secret"] = client_secret.into();
        return say(&shown.to_string());
    }
    say(&format!("client_id      {client_id}\nclient_secret  {client_secret}"))?;
    note(&format!("keep the secret now: nobody can show it again. To end it: chatfn credentials revoke {client_id}"));
    Ok(())
}

async fn list(args: &List) -> anyhow::Result<()> {
    let app_id = args.app.clone().unwrap_or_default();
    let mut client = client(&args.connection).await?;
    let (mut page_token, mut seen) = (String::new(), false);
    loop {
        let request = proto::ListCredentialsRequest { app_id: app_id.clone(), page_size: 0, page_token };
        let answer = client.list_credentials(args.connection.request(request)?).await;
        let page = answer.map_err(|status| refused(&status))?.into_inner();
        for credential in &page.credentials {
            say(&if args.json { as_json(credential).to_string() } else { as_text(credential) })?;
        }
        seen |= !page.credentials.is_empty();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match &args.app {
        _ if args.json || seen => Ok(()),
        Some(app) => say(&format!("{app} has no credentials: chatfn credentials create {app} --scope invoke")),
        None => say("There are no operators' credentials."),
    }
}

async fn revoke(args: &Revoke) -> anyhow::Result<()> {
    let request = proto::RevokeCredentialRequest { client_id: args.client_id.clone(), app_id: String::new() };
    let answer = client(&args.connection).await?.revoke_credential(args.connection.request(request)?).await;
    answer.map_err(|status| refused(&status))?;
    let id = &args.client_id;
    say(&if args.json { json!({ "client_id": id, "revoked": true }).to_string() } else { format!("{id} is revoked") })
}

fn as_json(credential: &proto::Credential) -> Value {
    let proto::Credential { client_id, app_id, scopes, description, created_at } = credential;
    json!({
        "client_id": client_id,
        "app_id": app_id,
        "scopes": scopes,
        "description": description,
        "created_at": moment(*created_at),
    })
}

fn as_text(credential: &proto::Credential) -> String {
    let proto::Credential { client_id, scopes, description, created_at, .. } = credential;
    let created = moment(*created_at).unwrap_or_default();
    // One line each, whatever somebody wrote.
    let description = cell(description, DESCRIPTION_CHARS_MAX);
    format!("{client_id}  {created}  {:<22}  {description}", scopes.join(" ")).trim_end().to_owned()
}
