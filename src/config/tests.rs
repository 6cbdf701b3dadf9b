use super::*;

fn load(text: &str, overrides: &[(&str, &str)]) -> Result<Config, String> {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().expect("temp file");
    std::fs::write(file.path(), text).expect("write");
    let overrides: Vec<_> = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Config::load(Some(file.path()), &overrides).map_err(|err| err.to_string())
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let config = load("idle_ttl = '5s'\nwaiting_max = 7", &[("waiting_max", "8")]).expect("valid");
    assert_eq!((config.idle_ttl, config.waiting_max), (Duration::from_secs(5), 8));
    assert_eq!(config.builds_max, Config::default().builds_max);
}

#[test]
fn what_is_wrong_is_named() {
    assert!(load("idle_tll = '5s'", &[]).unwrap_err().contains("idle_tll"));
    assert!(load("idle_ttl = 'soon'", &[]).unwrap_err().contains("soon"));
    assert!(load("waiting_max = 0", &[]).unwrap_err().contains("waiting_max"));
    assert!(load("log_format = 'xml'", &[]).unwrap_err().contains("xml"));
    assert!(load("listen = '0.0.0.0:1'", &[]).unwrap_err().contains("without credentials"));
}

#[test]
fn trigger_types_and_dependencies_come_from_the_file() {
    let text = "default_dependencies = {}\n[[trigger_types]]\nname = 'OrderPlaced'\nblocking = true\n\
                [trigger_types.schema]\ntype = 'object'";
    let config = load(text, &[]).expect("valid");
    assert_eq!(config.trigger_types[0].name, "OrderPlaced");
    assert!(config.default_dependencies.is_empty());
}

#[test]
fn the_sdk_is_chatkittys_unless_another_is_named() {
    let config = load("", &[("sdk.options.basePath", "http://api.test")]).expect("valid");
    assert_eq!(config.sdk.options["basePath"], "http://api.test");
    assert_eq!(config.sdk.options["clientSecret"], "${CHATKITTY_CLIENT_SECRET}");
    assert!(config.default_dependencies.contains_key(&config.sdk.package));
    let file =
        "[sdk]\npackage = '@acme/sdk'\nproperty = 'acme'\noptions = { key = '${ACME_KEY}', retry = { max = 3 } }";
    let config = load(file, &[]).expect("valid");
    assert_eq!((config.sdk.property.as_str(), &config.sdk.options["retry"]["max"]), ("acme", &3.into()));
    assert!(config.default_dependencies.is_empty());
    let refused = load("[sdk]\nproperty = 'deny'", &[]).unwrap_err();
    assert!(refused.contains("sdk.property") && refused.contains("deny"), "{refused}");
    assert!(load("[sdk]\npakage = 'x'", &[]).unwrap_err().contains("pakage"));
}

#[test]
fn lists_and_maps_are_json_in_a_flag() {
    let trigger = r#"[{"name":"OrderPlaced","blocking":true,"schema":{"additionalProperties":false}}]"#;
    let config = load("", &[("default_dependencies", r#"{"ms":"2.1.2"}"#), ("trigger_types", trigger)]);
    let config = config.expect("valid");
    assert_eq!(config.default_dependencies["ms"], "2.1.2");
    assert_eq!(config.trigger_types[0].schema["additionalProperties"], false);
    let refused = load("", &[("default_dependencies", "ms@2")]).unwrap_err();
    assert!(refused.contains("default_dependencies") && refused.contains("ms@2"), "{refused}");
}

#[test]
fn lists_inside_of_a_table_are_json_in_a_flag_too() {
    let flags = [
        ("isolation.require", r#"["memory","landlock"]"#),
        ("egress.deny", r#"["203.0.113.0/24"]"#),
        ("egress.allow", r#"[{"network":"10.1.2.3","ports":[5432]}]"#),
        ("egress.names_refused", r#"["corp.example"]"#),
        ("egress.dedicated", r#"{"shop":{"allow":[],"source":"192.0.2.1"}}"#),
    ];
    let config = load("[isolation]\nsingle_tenant = true", &flags).expect("valid");
    assert_eq!(config.isolation.require, [LayerName::Memory, LayerName::Landlock]);
    assert!(config.isolation.single_tenant && config.egress.deny.len() == 1);
    assert_eq!(config.egress.allow[0].ports, [5432]);
    assert_eq!(config.egress.names_refused.as_deref(), Some(&["corp.example".to_owned()][..]));
    assert_eq!(config.egress.dedicated["shop"].source.map(|source| source.to_string()).as_deref(), Some("192.0.2.1"));
    let file =
        "[egress]\nallow = [{ network = '10.1.2.3', ports = [5432] }]\n[egress.dedicated.shop]\nsource = '192.0.2.1'";
    let config = load(file, &[]).expect("valid");
    assert_eq!((config.egress.allow[0].ports[0], config.egress.dedicated.len()), (5432, 1));
    let refused = load("", &[("isolation.require", r#"["memry"]"#)]).unwrap_err();
    assert!(refused.contains("memry"), "{refused}");
}

#[cfg(feature = "otlp")]
#[test]
fn where_traces_go_is_read_from_the_file_and_from_flags() {
    let file = "[traces]\notlp_endpoint = 'http://collector:4317'\nsample_ratio = 1";
    let config = load(file, &[("traces.sample_ratio", "0.25"), ("traces.service_name", "chat")]).expect("valid");
    let expected = Traces {
        otlp_endpoint: Some("http://collector:4317".to_owned()),
        sample_ratio: 0.25,
        service_name: "chat".to_owned(),
    };
    assert_eq!(config.traces, expected);
    let integer = load(file, &[]).expect("valid");
    assert_eq!(integer.traces.sample_ratio, 1.0);
    let refused = load("", &[("traces.sample_ratio", "often")]).unwrap_err();
    assert!(refused.contains("often"), "{refused}");
}

#[test]
fn a_token_is_read_and_a_short_one_refused() {
    let file = tempfile::NamedTempFile::new().expect("temp file");
    let config = Config { operator_token_file: Some(file.path().to_owned()), ..Config::default() };
    std::fs::write(file.path(), "0123456789abcde\n").expect("write");
    assert!(config.operator_token().is_err());
    std::fs::write(file.path(), "0123456789abcdef\n").expect("write");
    assert_eq!(config.operator_token().expect("valid").as_deref(), Some("0123456789abcdef"));
}
