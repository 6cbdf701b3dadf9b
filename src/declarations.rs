//! `chat-functions.d.ts`: ambient types of events, of `Context` and of the environment, for editors and `tsc`.
//!
//! A pure function of the catalogue, the SDK and the names of environment variables; the same input gives the same bytes. What the
//! platform's own events carry stands in `platform.d.ts`; what an event of a declared trigger type carries comes from its JSON
//! Schema. Nothing that goes in is trusted to be a name: what is none is quoted, or left out.

mod schema;

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;

use crate::model::{self, Catalogue, Trigger};

/// What the generated file is called; one of this name among a project's sources is a copy of it.
pub const FILE_NAME: &str = "chat-functions.d.ts";

/// The server-side SDK that `Context` carries.
#[derive(Debug, Clone, Copy)]
pub struct Sdk<'a> {
    /// The npm package.
    pub package: &'a str,
    /// The class that it exports.
    pub export: &'a str,
    /// The context's property.
    pub property: &'a str,
}

impl<'a> Sdk<'a> {
    /// The one that functions get, if they get one.
    pub fn of(sdk: &'a model::Sdk) -> Option<Self> {
        let model::Sdk { package, export, property, .. } = sdk;
        sdk.is_some().then_some(Self { package, export, property })
    }
}

impl Default for Sdk<'_> {
    /// ChatKitty's.
    fn default() -> Self {
        Self { package: CHATKITTY, export: "ChatKitty", property: "ChatKitty" }
    }
}

const CHATKITTY: &str = "chatkitty-platform-sdk";
const PLATFORM: &str = include_str!("declarations/platform.d.ts");

/// Of ChatKitty's built-in trigger types.
const BUILT_IN: [(&str, &[(&str, &str)]); 9] = [
    ("UserAttemptedStartSession", &[("username", "string"), ("authParams", "any")]),
    (
        "UserReceivedNotification",
        &[("user", USER), ("notification", NOTIFICATION), ("userHasActiveSession", "boolean")],
    ),
    ("UserSentMessage", &[("user", USER), ("channel", CHANNEL), ("message", MESSAGE)]),
    (
        "UserStartedChatSession",
        &[("user", USER), ("channel", CHANNEL), ("channelUnread", "boolean"), ("channelMessagesCount", "number")],
    ),
    ("UserReactedToMessage", &[("user", USER), ("channel", CHANNEL), ("message", MESSAGE), ("reaction", REACTION)]),
    ("UserReadMessage", &[("user", USER), ("message", MESSAGE), ("receipt", RECEIPT)]),
    ("UserReceivedChannelInvite", &[("user", USER), ("channel", CHANNEL), ("invitingUser?", USER)]),
    ("UserTriggeredEvent", &[("user", USER), ("channel", CHANNEL), ("event", EVENT)]),
    ("SystemTriggeredEvent", &[("channel", CHANNEL), ("event", EVENT)]),
];
const USER: &str = "ChatFunctions.User";
const CHANNEL: &str = "ChatFunctions.Channel";
const MESSAGE: &str = "ChatFunctions.Message";
const NOTIFICATION: &str = "ChatFunctions.Notification";
const REACTION: &str = "ChatFunctions.Reaction";
const RECEIPT: &str = "ChatFunctions.Receipt";
const EVENT: &str = "ChatFunctions.CustomEvent";

/// Older guides' names for the SDK's clients.
const GETTERS: [(&str, &str); 20] = [
    ("getApplicationApi", "Application"),
    ("getApplicationsApi", "Application"),
    ("getChannelApi", "Channels"),
    ("getChannelsApi", "Channels"),
    ("getFunctionApi", "Functions"),
    ("getFunctionsApi", "Functions"),
    ("getFunctionVersionApi", "FunctionVersions"),
    ("getFunctionVersionsApi", "FunctionVersions"),
    ("getImportApi", "Imports"),
    ("getImportsApi", "Imports"),
    ("getJobApi", "Jobs"),
    ("getJobsApi", "Jobs"),
    ("getMessageApi", "Messages"),
    ("getMessagesApi", "Messages"),
    ("getRuntimeApi", "Runtime"),
    ("getRuntimesApi", "Runtime"),
    ("getThreadApi", "Threads"),
    ("getThreadsApi", "Threads"),
    ("getUserApi", "Users"),
    ("getUsersApi", "Users"),
];

/// What the context has whatever the SDK is called.
const CONTEXT: [(&str, &str, &str); 11] = [
    ("app", "{ readonly id: string }", ""),
    ("function", "{ readonly name: string; readonly version: number }", ""),
    ("trigger", "{ readonly type: string; readonly blocking: boolean }", ""),
    (
        "invocation",
        "{ readonly id: string; readonly attempt: number; readonly hops: number }",
        "`attempt` counts from 1; `hops` says how many functions' events led to this one.",
    ),
    ("trace", "ChatFunctions.Trace", "Where in a distributed trace it runs; send `traceparent` and `tracestate` on."),
    ("signal", "AbortSignal", "Aborted at the deadline."),
    ("remainingMs", "() => number", "Until the deadline."),
    ("env", "ChatFunctions.Environment", "The app's environment variables, as when the worker started."),
    ("log", "ChatFunctions.Log", "As `console`; always of this invocation."),
    ("initialization", "any", "What the initialization script exports."),
    ("deny", "", ""),
];

/// The content of [`FILE_NAME`]. Without an `sdk` the context has none; `environment` holds names of the app's variables.
pub fn declarations<S: AsRef<str>>(
    catalogue: &Catalogue,
    sdk: Option<&Sdk<'_>>,
    environment: impl IntoIterator<Item = S>,
) -> String {
    let environment: BTreeSet<String> = environment.into_iter().map(|name| quoted(name.as_ref())).collect();
    let triggers: Vec<&Trigger> = catalogue.iter().filter(|trigger| is_name(trigger.trigger_type.as_str())).collect();
    let mut out = String::from(
        "// Generated by chatfn from the app's trigger types and environment. Do not edit: it is replaced.\n\
         // The names are global: functions use them without importing anything.\n\n",
    );
    write_events(&mut out, &triggers);
    write_context(&mut out, sdk);
    out.push_str(PLATFORM);
    write_environment(&mut out, &environment);
    out
}

fn write_events(out: &mut String, triggers: &[&Trigger]) {
    let taken: BTreeSet<String> = triggers.iter().map(|trigger| format!("{}Event", trigger.trigger_type)).collect();
    for trigger in triggers {
        let name = trigger.trigger_type.as_str();
        let kind = if trigger.blocking { "Blocking: what the handler returns is the result" } else { "Non-blocking" };
        push(out, format_args!("/** {kind}. */\n"));
        match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, fields)) => {
                push(out, format_args!("interface {name}Event {{\n"));
                fields.iter().for_each(|(field, of)| push(out, format_args!("  {field}: {of};\n")));
                out.push_str("}\n");
            }
            None => push(out, format_args!("type {name}Event = {};\n", schema::to_type(&trigger.schema))),
        }
        // `UserTriggeredEvent` reads as a type of an event already.
        if name.ends_with("Event") && !taken.contains(name) {
            push(out, format_args!("type {name} = {name}Event;\n"));
        }
        out.push('\n');
    }
    out.push_str("declare namespace ChatFunctions {\n  /** By trigger type. */\n  interface Events {\n");
    for trigger in triggers {
        push(out, format_args!("    {0}: {0}Event;\n", trigger.trigger_type));
    }
    out.push_str("  }\n}\n\n");
}

fn write_context(out: &mut String, sdk: Option<&Sdk<'_>>) {
    let sdk = sdk.filter(|sdk| is_name(sdk.export) && !CONTEXT.iter().any(|(name, ..)| *name == sdk.property));
    if let Some(Sdk { package, export, .. }) = sdk {
        let class = format!("typeof import({}).{export}", quoted(package));
        push(
            out,
            format_args!(
                "declare namespace ChatFunctions {{\n  /** The server-side SDK. */\n  type Client = {class} extends abstract new \
                 (...values: any[]) => infer Client ? Client : any;\n}}\n\n"
            ),
        );
    }
    out.push_str("/** What a handler gets as its second argument. */\ninterface Context {\n");
    for (name, of, what) in CONTEXT.iter().filter(|(_, of, _)| !of.is_empty()) {
        if !what.is_empty() {
            push(out, format_args!("  /** {what} */\n"));
        }
        push(out, format_args!("  readonly {name}: {of};\n"));
    }
    out.push_str("  /** Refuses the action of a blocking trigger. Throws, so that the handler stops. */\n");
    out.push_str("  deny(reason?: string, options?: { code?: string; data?: unknown }): never;\n");
    if let Some(sdk) = sdk {
        out.push_str("  /** The server-side SDK, initialized. */\n");
        push(out, format_args!("  readonly {}: ChatFunctions.Client;\n", quoted(sdk.property)));
        if sdk.package == CHATKITTY {
            for (getter, client) in GETTERS {
                let client = format!("ChatFunctions.Older<ChatFunctions.Client['{client}']>");
                push(out, format_args!("  {getter}(): {client};\n"));
            }
        }
    }
    out.push_str("}\n\n");
}

/// Declared variables are there: a publish without one of them is a version without its name.
fn write_environment(out: &mut String, environment: &BTreeSet<String>) {
    out.push_str("\ndeclare namespace ChatFunctions {\n  interface Environment {\n");
    out.push_str("    readonly [name: string]: string | undefined;\n");
    environment.iter().for_each(|name| push(out, format_args!("    readonly {name}: string;\n")));
    out.push_str("  }\n}\n\n/** `process.env` */\ndeclare namespace NodeJS {\n  interface ProcessEnv {\n");
    environment.iter().for_each(|name| push(out, format_args!("    {name}: string;\n")));
    out.push_str("  }\n}\n");
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

/// A string that no name can end early: JSON's are TypeScript's.
fn quoted(name: &str) -> String {
    Value::from(name).to_string()
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$')
}

#[cfg(test)]
mod tests;
