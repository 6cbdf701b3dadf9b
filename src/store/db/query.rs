//! A statement and what is bound to it.

use std::borrow::Cow;

use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, Postgres, Sqlite};

use super::row::Column;
use super::{On, Row};

/// What can be bound. With its type also where it is NULL: PostgreSQL asks for it.
#[derive(Debug, Clone)]
pub enum Value<'q> {
    Number(Option<i64>),
    Truth(Option<bool>),
    Text(Option<Cow<'q, str>>),
    Bytes(Option<Cow<'q, [u8]>>),
}

/// A statement's text.
#[derive(Debug, Clone)]
pub enum Text {
    Same(Cow<'static, str>),
    Each { sqlite: &'static str, postgres: &'static str },
}

/// A statement, ready to run.
#[derive(Debug)]
pub struct Query<'q> {
    text: Text,
    values: Vec<Value<'q>>,
}

/// A statement of whose rows only the first column is wanted.
#[derive(Debug)]
pub struct Scalar<'q>(Query<'q>);

/// Two texts for what the engines have no words in common for.
pub fn each(sqlite: &'static str, postgres: &'static str) -> Text {
    Text::Each { sqlite, postgres }
}

pub fn query<'q>(text: impl Into<Text>) -> Query<'q> {
    Query { text: text.into(), values: Vec::new() }
}

pub fn query_scalar<'q>(text: impl Into<Text>) -> Scalar<'q> {
    Scalar(query(text))
}

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Self {
        Self::Same(Cow::Borrowed(text))
    }
}

impl Text {
    fn sqlite(self) -> Cow<'static, str> {
        match self {
            Self::Same(text) => text,
            Self::Each { sqlite, .. } => Cow::Borrowed(sqlite),
        }
    }

    /// With what stands in comments for PostgreSQL alone.
    fn postgres(self) -> Cow<'static, str> {
        let text = match self {
            Self::Same(text) => text,
            Self::Each { postgres, .. } => return Cow::Borrowed(postgres),
        };
        if !text.contains("/*pg ") {
            return text;
        }
        let mut shown = String::with_capacity(text.len());
        let mut rest = text.as_ref();
        while let Some((before, after)) = rest.split_once("/*pg ") {
            let (inside, after) = after.split_once("*/").unwrap_or((after, ""));
            shown.push_str(before);
            shown.push_str(inside);
            rest = after;
        }
        shown.push_str(rest);
        Cow::Owned(shown)
    }
}

impl<'q> Query<'q> {
    pub(super) fn with(text: String, values: Vec<Value<'q>>) -> Self {
        Self { text: Text::Same(Cow::Owned(text)), values }
    }

    pub fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    pub fn scalar(self) -> Scalar<'q> {
        Scalar(self)
    }

    /// How many rows it inserted, changed or deleted.
    pub async fn execute(self, on: impl Into<On<'_>>) -> Result<u64, sqlx::Error> {
        match on.into() {
            On::SqlitePool(pool) => Ok(self.for_sqlite()?.execute(pool).await?.rows_affected()),
            On::SqliteTx(tx) => Ok(self.for_sqlite()?.execute(tx).await?.rows_affected()),
            On::PostgresPool(pool) => Ok(self.for_postgres()?.execute(pool).await?.rows_affected()),
            On::PostgresTx(tx) => Ok(self.for_postgres()?.execute(tx).await?.rows_affected()),
        }
    }

    pub async fn fetch_all(self, on: impl Into<On<'_>>) -> Result<Vec<Row>, sqlx::Error> {
        let sqlite = |rows: Vec<_>| rows.into_iter().map(Row::Sqlite).collect();
        let postgres = |rows: Vec<_>| rows.into_iter().map(Row::Postgres).collect();
        match on.into() {
            On::SqlitePool(pool) => self.for_sqlite()?.fetch_all(pool).await.map(sqlite),
            On::SqliteTx(tx) => self.for_sqlite()?.fetch_all(tx).await.map(sqlite),
            On::PostgresPool(pool) => self.for_postgres()?.fetch_all(pool).await.map(postgres),
            On::PostgresTx(tx) => self.for_postgres()?.fetch_all(tx).await.map(postgres),
        }
    }

    pub async fn fetch_optional(self, on: impl Into<On<'_>>) -> Result<Option<Row>, sqlx::Error> {
        match on.into() {
            On::SqlitePool(pool) => Ok(self.for_sqlite()?.fetch_optional(pool).await?.map(Row::Sqlite)),
            On::SqliteTx(tx) => Ok(self.for_sqlite()?.fetch_optional(tx).await?.map(Row::Sqlite)),
            On::PostgresPool(pool) => Ok(self.for_postgres()?.fetch_optional(pool).await?.map(Row::Postgres)),
            On::PostgresTx(tx) => Ok(self.for_postgres()?.fetch_optional(tx).await?.map(Row::Postgres)),
        }
    }

    pub async fn fetch_one(self, on: impl Into<On<'_>>) -> Result<Row, sqlx::Error> {
        self.fetch_optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }

    fn for_sqlite(self) -> Result<sqlx::query::Query<'static, Sqlite, SqliteArguments>, sqlx::Error> {
        let mut arguments = SqliteArguments::default();
        for value in self.values {
            match value {
                Value::Number(number) => arguments.add(number),
                Value::Truth(truth) => arguments.add(truth),
                Value::Text(text) => arguments.add(text.map(Cow::into_owned)),
                Value::Bytes(bytes) => arguments.add(bytes.map(Cow::into_owned)),
            }
            .map_err(sqlx::Error::Encode)?;
        }
        Ok(sqlx::query_with(AssertSqlSafe(self.text.sqlite()), arguments))
    }

    fn for_postgres(self) -> Result<sqlx::query::Query<'static, Postgres, PgArguments>, sqlx::Error> {
        let mut arguments = PgArguments::default();
        for value in self.values {
            match value {
                Value::Number(number) => arguments.add(number),
                Value::Truth(truth) => arguments.add(truth),
                Value::Text(text) => arguments.add(text.map(without_nul)),
                Value::Bytes(bytes) => arguments.add(bytes.map(Cow::into_owned)),
            }
            .map_err(sqlx::Error::Encode)?;
        }
        Ok(sqlx::query_with(AssertSqlSafe(self.text.postgres()), arguments))
    }
}

/// PostgreSQL's texts cannot hold U+0000, which a function may well write to its log.
fn without_nul(text: Cow<'_, str>) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.into_owned() }
}

impl<'q> Scalar<'q> {
    pub fn bind(self, value: impl Into<Value<'q>>) -> Self {
        Self(self.0.bind(value))
    }

    pub async fn fetch_one<T: for<'r> Column<'r>>(self, on: impl Into<On<'_>>) -> Result<T, sqlx::Error> {
        self.0.fetch_one(on).await?.try_get(0)
    }

    pub async fn fetch_optional<T: for<'r> Column<'r>>(self, on: impl Into<On<'_>>) -> Result<Option<T>, sqlx::Error> {
        self.0.fetch_optional(on).await?.map(|row| row.try_get(0)).transpose()
    }

    pub async fn fetch_all<T: for<'r> Column<'r>>(self, on: impl Into<On<'_>>) -> Result<Vec<T>, sqlx::Error> {
        self.0.fetch_all(on).await?.iter().map(|row| row.try_get(0)).collect()
    }
}

macro_rules! value_of {
    ($type:ty, $number:pat => $value:expr) => {
        impl<'q> From<$type> for Value<'q> {
            fn from($number: $type) -> Self {
                $value
            }
        }
    };
}

value_of!(i64, number => Self::Number(Some(number)));
value_of!(Option<i64>, number => Self::Number(number));
value_of!(bool, truth => Self::Truth(Some(truth)));
value_of!(&'q str, text => Self::Text(Some(Cow::Borrowed(text))));
value_of!(Option<&'q str>, text => Self::Text(text.map(Cow::Borrowed)));
value_of!(&'q String, text => Self::Text(Some(Cow::Borrowed(text))));
value_of!(Option<&'q String>, text => Self::Text(text.map(|text| Cow::Borrowed(text.as_str()))));
value_of!(&'q Option<String>, text => Self::Text(text.as_deref().map(Cow::Borrowed)));
value_of!(String, text => Self::Text(Some(Cow::Owned(text))));
value_of!(Option<String>, text => Self::Text(text.map(Cow::Owned)));
value_of!(&'q [u8], bytes => Self::Bytes(Some(Cow::Borrowed(bytes))));
value_of!(Vec<u8>, bytes => Self::Bytes(Some(Cow::Owned(bytes))));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_postgresql_alone_is_a_comment_for_sqlite() {
        let text = || Text::from("SELECT 1 /*pg FOR UPDATE */, 2 /*pg SKIP LOCKED*/");
        assert_eq!(text().postgres(), "SELECT 1 FOR UPDATE , 2 SKIP LOCKED");
        assert_eq!(text().sqlite(), "SELECT 1 /*pg FOR UPDATE */, 2 /*pg SKIP LOCKED*/");
        assert_eq!(Text::from("SELECT 1").postgres(), "SELECT 1");
        assert_eq!(each("a", "b").postgres(), "b");
        assert_eq!(each("a", "b").sqlite(), "a");
    }

    #[test]
    fn a_text_that_postgresql_cannot_hold_is_mended() {
        assert_eq!(without_nul(Cow::Borrowed("a\0b")), "a\u{fffd}b");
    }
}
