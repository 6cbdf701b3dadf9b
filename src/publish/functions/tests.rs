use super::*;

const BLOCKING: &str = "UserAttemptedStartSession";
const QUEUED: &str = "UserSentMessage";

fn resolved(paths: &[&str], declared: Vec<FunctionDecl>) -> Result<Vec<Function>, &'static str> {
    let mut files = paths.iter().map(|path| ((*path).to_owned(), Bytes::new())).collect();
    let catalogue = Catalogue::new(&[]).expect("built in");
    resolve(&mut files, declared, &catalogue).map_err(|err| err.reason())
}

fn decl(trigger_type: &str, code: Option<Code>) -> FunctionDecl {
    FunctionDecl { trigger_type: trigger_type.into(), code, ..FunctionDecl::default() }
}

fn source() -> Option<Code> {
    Some(Code::Source("x".into()))
}

fn entry(path: &str) -> Option<Code> {
    Some(Code::Entry(path.into()))
}

#[test]
fn functions_are_found_by_their_file_names() {
    let functions = resolved(
        &[
            "functions/UserSentMessage.ts",
            "functions/User Read Message.mjs",
            "functions/UserTriggeredEventEvent.cts",
            "functions/_shared.ts",
            "functions/lib/Other.ts",
            "functions/types.d.ts",
            "functions/Foo.test.ts",
            "functions/data.json",
            "functions/.x.js",
            "other/UserSentMessage.ts",
        ],
        vec![],
    );
    let found: Vec<_> = functions.expect("fine").into_iter().map(|f| (f.trigger_type.to_string(), f.entry)).collect();
    let expected = [
        ("UserReadMessage", "functions/User Read Message.mjs"),
        ("UserSentMessage", "functions/UserSentMessage.ts"),
        ("UserTriggeredEvent", "functions/UserTriggeredEventEvent.cts"),
    ];
    assert_eq!(found, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(resolved(&["functions/Helper.ts"], vec![]), Err("UNKNOWN_TRIGGER_TYPE"));
    assert_eq!(resolved(&["lib/x.ts"], vec![]), Ok(vec![]));
}

#[test]
fn an_unknown_trigger_type_is_told_the_known_ones() {
    let catalogue = Catalogue::new(&[]).expect("built in");
    let mut files = BTreeMap::from([("functions/Nope.ts".to_owned(), Bytes::new())]);
    let message = resolve(&mut files, vec![], &catalogue).expect_err("unknown").to_string();
    assert!(message.contains("UserReactedToMessage") && message.contains("Nope"), "{message}");
}

#[test]
fn a_declaration_adds_or_describes() {
    let file = "functions/UserSentMessage.js";
    let named = FunctionDecl { name: "Hello".into(), disabled: true, ..decl("User Sent Message", None) };
    let functions = resolved(&[file], vec![named]).expect("described");
    assert_eq!((functions[0].name.as_str(), functions[0].entry.as_str(), functions[0].disabled), ("Hello", file, true));

    let functions = resolved(&[], vec![decl(QUEUED, source())]).expect("inline");
    assert_eq!((functions[0].name.as_str(), functions[0].entry.as_str()), (QUEUED, "functions/UserSentMessage.ts"));
    let js = FunctionDecl { language: "javascript".into(), ..decl(QUEUED, source()) };
    assert_eq!(resolved(&[], vec![js]).expect("inline")[0].entry, "functions/UserSentMessage.js");
    let perl = FunctionDecl { language: "perl".into(), ..decl(QUEUED, source()) };
    assert_eq!(resolved(&[], vec![perl]), Err("INVALID_FUNCTION"));

    let functions = resolved(&["src/a.ts"], vec![decl(QUEUED, entry("./src/a.ts")), decl(BLOCKING, entry("src/a.ts"))]);
    assert!(functions.expect("entries").iter().all(|f| f.entry == "src/a.ts"));
    assert!(resolved(&["functions/helper.ts"], vec![decl(QUEUED, entry("functions/helper.ts"))]).is_ok());
    for missing in ["src/b.ts", "../a.ts", "src/a.d.ts", "src/a.json", ""] {
        assert_eq!(resolved(&["src/a.d.ts", "src/a.json"], vec![decl(QUEUED, entry(missing))]), Err("ENTRY_NOT_FOUND"));
    }
    assert_eq!(resolved(&[], vec![decl(QUEUED, None)]), Err("ENTRY_NOT_FOUND"));
    assert_eq!(resolved(&[], vec![decl("Nope", source())]), Err("UNKNOWN_TRIGGER_TYPE"));
}

#[test]
fn a_trigger_has_one_function() {
    let file = "functions/UserSentMessage.js";
    for (files, declared) in [
        (vec![file, "functions/UserSentMessageEvent.ts"], vec![]),
        (vec![file], vec![decl(QUEUED, source())]),
        (vec![file, "a.ts"], vec![decl(QUEUED, entry("a.ts"))]),
        (vec![], vec![decl(QUEUED, source()), decl("User Sent Message", source())]),
    ] {
        assert_eq!(resolved(&files, declared), Err("DUPLICATE_FUNCTION"), "{files:?}");
    }
    assert!(resolved(&[file], vec![decl(QUEUED, entry(file))]).is_ok());
}

#[test]
fn timeouts_have_defaults_and_bounds() {
    let timeout = |trigger, timeout| {
        let declaration = FunctionDecl { timeout, ..decl(trigger, source()) };
        resolved(&[], vec![declaration]).map(|functions| functions[0].timeout)
    };
    assert_eq!(timeout(BLOCKING, None), Ok(Duration::from_secs(5)));
    assert_eq!(timeout(QUEUED, None), Ok(Duration::from_secs(30)));
    for good in [10, 900_000] {
        assert!(timeout(QUEUED, Some(Duration::from_millis(good))).is_ok(), "{good}");
    }
    for bad in [0, 9, 900_001] {
        assert_eq!(timeout(BLOCKING, Some(Duration::from_millis(bad))), Err("INVALID_FUNCTION"), "{bad}");
    }
}

#[test]
fn batches_are_resolved_and_bounded() {
    let batch = |trigger, max_size, max_wait: Option<u64>| {
        let spec = BatchSpec { max_size, max_wait: max_wait.map(Duration::from_millis) };
        let declaration = FunctionDecl { batch: Some(spec), ..decl(trigger, source()) };
        resolved(&[], vec![declaration]).map(|mut functions| functions.remove(0).batch)
    };
    let default = Batch { max_size: 100, max_wait: Duration::from_secs(1) };
    assert_eq!(batch(QUEUED, None, None), Ok(Some(default)));
    assert_eq!(batch(BLOCKING, None, None), Err("INVALID_FUNCTION"));
    for (good, size) in [(false, 1), (true, 2), (true, 1000), (false, 1001)] {
        assert_eq!(batch(QUEUED, Some(size), None).is_ok(), good, "{size}");
    }
    for (good, wait) in [(false, 0), (true, 1), (true, 3_600_000), (false, 3_600_001)] {
        assert_eq!(batch(QUEUED, None, Some(wait)).is_ok(), good, "{wait}");
    }
}

#[test]
fn retries_are_resolved_and_bounded() {
    let retry = |trigger, spec| {
        let declaration = FunctionDecl { retry: Some(spec), ..decl(trigger, source()) };
        resolved(&[], vec![declaration]).map(|mut functions| functions.remove(0).retry)
    };
    let none = RetrySpec::default();
    assert_eq!(retry(QUEUED, none), Ok(RetryPolicy::default()));
    assert_eq!(retry(BLOCKING, none), Err("INVALID_FUNCTION"));
    let ms = |ms| Some(Duration::from_millis(ms));
    let (day, month) = (24 * 3_600_000, 30 * 24 * 3_600_000);
    for (good, spec) in [
        (true, RetrySpec { max_attempts: Some(1), ..none }),
        (true, RetrySpec { max_attempts: Some(100), ..none }),
        (false, RetrySpec { max_attempts: Some(0), ..none }),
        (false, RetrySpec { max_attempts: Some(101), ..none }),
        (true, RetrySpec { initial_backoff: ms(1), ..none }),
        (false, RetrySpec { initial_backoff: ms(0), ..none }),
        (true, RetrySpec { initial_backoff: ms(day), ..none }),
        (false, RetrySpec { initial_backoff: ms(day + 1), ..none }),
        (true, RetrySpec { max_backoff: ms(5), ..none }),
        (false, RetrySpec { initial_backoff: ms(6), max_backoff: ms(5), ..none }),
        (false, RetrySpec { max_backoff: ms(day + 1), ..none }),
        (true, RetrySpec { max_age: ms(1000), ..none }),
        (false, RetrySpec { max_age: ms(999), ..none }),
        (true, RetrySpec { max_age: ms(month), ..none }),
        (false, RetrySpec { max_age: ms(month + 1), ..none }),
    ] {
        assert_eq!(retry(QUEUED, spec).is_ok(), good, "{spec:?}");
    }
}

#[test]
fn a_failure_policy_is_for_blocking_triggers_and_consistent() {
    let policy = |trigger, spec| {
        let declaration = FunctionDecl { failure_policy: Some(spec), ..decl(trigger, source()) };
        resolved(&[], vec![declaration]).map(|mut functions| functions.remove(0).failure_policy)
    };
    let none = FailurePolicySpec::default();
    assert_eq!(policy(BLOCKING, none.clone()), Ok(FailurePolicy::default()));
    assert_eq!(policy(QUEUED, none.clone()), Err("INVALID_FUNCTION"));
    let with = |json: &str, allow: Option<FailureAction>| {
        let spec = FailurePolicySpec { on_overload: allow, default_json: Some(json.into()), ..none.clone() };
        policy(BLOCKING, spec)
    };
    let allow = Some(FailureAction::Allow);
    assert!(with("{\"a\":1}", allow).is_ok() && with("", None).is_ok());
    assert_eq!(with("{", allow), Err("INVALID_FUNCTION"));
    assert_eq!(with("{}", None), Err("INVALID_FUNCTION"));
    assert_eq!(with("{}", Some(FailureAction::Deny)), Err("INVALID_FUNCTION"));
    let sized = |size: usize| format!("\"{}\"", "x".repeat(size - 2));
    assert!(with(&sized(DEFAULT_JSON_BYTES_MAX), allow).is_ok());
    assert_eq!(with(&sized(DEFAULT_JSON_BYTES_MAX + 1), allow), Err("INVALID_FUNCTION"));
}

#[test]
fn names_are_bounded() {
    let named = |name: String, description: String| {
        resolved(&[], vec![FunctionDecl { name, description, ..decl(QUEUED, source()) }]).map(|_| ())
    };
    assert_eq!(named("é".repeat(200), "é".repeat(4000)), Ok(()));
    assert_eq!(named("é".repeat(201), String::new()), Err("INVALID_FUNCTION"));
    assert_eq!(named(String::new(), "é".repeat(4001)), Err("INVALID_FUNCTION"));
    assert_eq!(named("a\nb".into(), String::new()), Err("INVALID_FUNCTION"));
}
