//! Versions N and N+1 run side by side on one database, so migrations only add, and statements name what they read and write. Reads the
//! sources. The rules are in `docs/upgrade.md`; that both engines end up with the same columns is tested in `src/store/open`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ENGINES: [&str; 2] = ["sqlite", "postgres"];
/// SQLite's alone, from before there was an engine with more than one service. What ran cannot be changed: its hash is in databases.
const BEFORE_THE_RULE: [&str; 2] = ["0002_events_by_age.sql", "0003_lines.sql"];
/// From here on both engines have the same files.
const COMMON_FROM: u32 = 14;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Name → text.
fn migrations(engine: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(root().join("migrations").join(engine)).expect("the migrations").flatten();
    let named = |path: PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        (name, fs::read_to_string(path).expect("readable"))
    };
    entries.map(|entry| named(entry.path())).collect()
}

fn number(name: &str) -> u32 {
    name.split('_').next().and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{name} has no number"))
}

/// In capitals, one line each, without comments.
fn statements(text: &str) -> Vec<String> {
    let code = text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
    let words = |statement: &str| statement.split_whitespace().collect::<Vec<_>>().join(" ").to_uppercase();
    code.split(';').map(words).filter(|statement| !statement.is_empty()).collect()
}

/// Why a service of the version before could not live with this.
fn takes_away(statement: &str, new_tables: &BTreeSet<String>) -> Option<&'static str> {
    let table_of = |prefix: &str, after: &str| {
        let rest = statement.strip_prefix(prefix)?;
        let (_, rest) = rest.split_once(after)?;
        rest.split([' ', '(']).find(|word| !word.is_empty()).map(str::to_owned)
    };
    if statement.starts_with("DROP ") {
        return Some("it drops something");
    }
    if statement.starts_with("CREATE UNIQUE INDEX ") {
        let of = table_of("CREATE UNIQUE INDEX ", " ON ")?;
        return (!new_tables.contains(&of)).then_some("it refuses rows that were fine before");
    }
    let change = statement.strip_prefix("ALTER TABLE ")?;
    let padded = format!("{change} ");
    let has = |words: &str| padded.contains(words);
    match () {
        () if has(" DROP ") && !has(" DROP NOT NULL ") && !has(" DROP DEFAULT ") => Some("it drops something"),
        () if has(" RENAME ") => Some("it renames something"),
        () if has(" TYPE ") => Some("it changes a type"),
        () if has(" SET NOT NULL ") || has(" ADD CONSTRAINT ") => Some("it refuses rows that were fine before"),
        () if has(" ADD COLUMN ") && has(" NOT NULL ") && !has(" DEFAULT ") => {
            Some("its column is NOT NULL without a DEFAULT: who does not know it cannot insert")
        }
        () => None,
    }
}

/// What is wrong with a migration, given the numbers of all.
fn problems(name: &str, text: &str, numbers: &BTreeSet<u32>) -> Vec<String> {
    let statements = statements(text);
    let new_tables = statements.iter().filter_map(|statement| statement.strip_prefix("CREATE TABLE "));
    let new_tables = new_tables.filter_map(|rest| rest.split([' ', '(']).next()).map(str::to_owned).collect();
    let taken: Vec<_> = statements.iter().filter_map(|s| takes_away(s, &new_tables).map(|why| (s, why))).collect();
    let since = name.split_once("_contract_").and_then(|(_, rest)| rest.split('_').next()?.parse::<u32>().ok());
    let told = text.lines().any(|line| line.strip_prefix("-- contract: ").is_some_and(|why| !why.trim().is_empty()));
    match since {
        None => taken.iter().map(|(statement, why)| format!("{name}: {why}: {statement}")).collect(),
        Some(_) if taken.is_empty() => vec![format!("{name}: it takes nothing away, so it is no contract")],
        Some(_) if !told => {
            vec![format!("{name}: say in a line `-- contract: …` what nobody reads any more, since which version")]
        }
        Some(since) if since >= number(name) || !numbers.contains(&since) => {
            vec![format!("{name}: {since} is no migration before it")]
        }
        Some(_) => Vec::new(),
    }
}

#[test]
fn migrations_only_add_unless_their_name_says_who_can_live_with_it() {
    for engine in ENGINES {
        let files = migrations(engine);
        let numbers: BTreeSet<_> = files.keys().map(|name| number(name)).collect();
        assert_eq!(numbers.len(), files.len(), "{engine}: two have the same number");
        let found: Vec<_> = files
            .iter()
            .filter(|(name, _)| !BEFORE_THE_RULE.contains(&name.as_str()))
            .flat_map(|(name, text)| problems(name, text, &numbers))
            .collect();
        assert!(found.is_empty(), "{engine}: {found:#?}");
    }
}

#[test]
fn both_engines_have_the_same_migrations() {
    let names =
        |engine| migrations(engine).into_keys().filter(|name| number(name) >= COMMON_FROM).collect::<BTreeSet<_>>();
    assert_eq!(names("sqlite"), names("postgres"));
    assert!(!names("sqlite").is_empty(), "they are found");
}

#[test]
fn what_takes_away_is_recognized() {
    let judge = |text: &str| problems("0020_x.sql", text, &BTreeSet::from([14, 20]));
    for (bad, why) in [
        ("DROP TABLE apps;", "drops"),
        ("ALTER TABLE apps\n  DROP COLUMN description;", "drops"),
        ("drop index events_due;", "drops"),
        ("ALTER TABLE apps RENAME COLUMN a TO b;", "renames"),
        ("ALTER TABLE apps RENAME TO b;", "renames"),
        ("ALTER TABLE apps ALTER COLUMN a TYPE TEXT;", "type"),
        ("ALTER TABLE apps ALTER COLUMN a SET NOT NULL;", "refuses rows"),
        ("ALTER TABLE apps ADD CONSTRAINT c CHECK (a > 1);", "refuses rows"),
        ("ALTER TABLE apps ADD COLUMN a BIGINT NOT NULL;", "cannot insert"),
        ("CREATE UNIQUE INDEX i ON apps (a);", "refuses rows"),
    ] {
        let found = judge(bad);
        assert!(found.len() == 1 && found[0].contains(why), "{bad}: {found:?}");
        let marked = format!("-- contract: nobody reads it since 0.3\n{bad}");
        let named = |name: &str, text: &str| problems(name, text, &BTreeSet::from([14, 20])).len();
        assert_eq!(named("0020_contract_0014_x.sql", &marked), 0, "{bad}");
        assert_eq!(named("0020_contract_0014_x.sql", bad), 1, "not told: {bad}");
        assert_eq!(named("0020_contract_0013_x.sql", &marked), 1, "no such migration: {bad}");
        assert_eq!(named("0020_contract_0020_x.sql", &marked), 1, "itself: {bad}");
    }
    for good in [
        "CREATE TABLE t (a BIGINT NOT NULL); CREATE UNIQUE INDEX i ON t (a);",
        "ALTER TABLE apps ADD COLUMN a BIGINT; -- DROP TABLE apps;",
        "ALTER TABLE apps ADD COLUMN a BIGINT NOT NULL DEFAULT 0;",
        "ALTER TABLE apps ALTER COLUMN a DROP NOT NULL;",
        "UPDATE apps SET a = 1; CREATE INDEX i ON apps (a);",
    ] {
        assert_eq!(judge(good), Vec::<String>::new(), "{good}");
    }
    assert_eq!(problems("0020_contract_0014_x.sql", "-- contract: x\nSELECT 1;", &BTreeSet::from([14, 20])).len(), 1);
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("src").flatten().map(|entry| entry.path());
    let below = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    entries.flat_map(below).filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// A column that a newer chatfn adds must change neither what a statement returns (PostgreSQL then refuses it where it is prepared
/// already) nor which column a value goes to.
fn is_blind(code: &str) -> bool {
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let stars = ["SELECT *", "RETURNING *", "(\"*\"", " \"*\" }"];
    let of_an_alias = code.contains("SELECT ") && (code.contains(".*,") || code.contains(".* "));
    let without_columns = code.match_indices("INSERT INTO ").any(|(at, words)| {
        let rest = &code[at + words.len()..];
        let after = rest.split_once(' ').map(|(_, after)| after).unwrap_or_default();
        rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && (after.starts_with("VALUES") || after.starts_with("SELECT"))
    });
    stars.iter().any(|star| code.contains(star)) || of_an_alias || without_columns
}

#[test]
fn statements_name_the_columns_they_read_and_write() {
    for blind in [
        "\"SELECT * FROM apps\"",
        "\"SELECT f.*, a.id FROM f\"",
        "\"UPDATE apps SET a = 1 RETURNING *\"",
        "filter.select(\"*\", app)",
        "\"INSERT INTO apps VALUES ($1)\"",
        "\"INSERT INTO apps SELECT id FROM a\"",
    ] {
        assert!(is_blind(blind), "{blind}");
    }
    for fine in
        ["\"SELECT COUNT(*) FROM a\"", "\"INSERT INTO apps (id) VALUES ($1)\"", "\"INSERT INTO apps (id) SELECT 1\""]
    {
        assert!(!is_blind(fine), "{fine}");
    }
    let mut found = Vec::new();
    for path in sources(&root().join("src/store")) {
        let text = fs::read_to_string(&path).expect("readable");
        let code: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        // A statement may go on in the next line.
        let pairs = code.windows(2).filter(|pair| is_blind(&pair.join(" ")) && !is_blind(pair[1]));
        found.extend(pairs.map(|pair| format!("{}: {}", path.display(), pair[0].trim())));
    }
    assert!(found.is_empty(), "{found:#?}");
}
