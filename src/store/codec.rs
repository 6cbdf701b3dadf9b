//! How the model's values look in a row: times as milliseconds, lists as JSON, numbers as signed 64 bits.

use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Error;
use super::db::{Column, Row};
use crate::model::VersionNumber;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Since 1970, rounded down; what no `i64` holds is cut off at its end.
pub fn millis(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => span_millis(after),
        Err(before) => -span_millis(before.duration()),
    }
}

pub fn span_millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

pub fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

pub fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|err| Error::Corrupt(format!("write JSON: {err}")))
}

pub fn corrupt(column: &str, problem: impl Display) -> Error {
    Error::Corrupt(format!("{column}: {problem}"))
}

/// A column as it is.
pub fn get<'r, T: Column<'r>>(row: &'r Row, column: &str) -> Result<T, Error> {
    row.try_get(column).map_err(|err| corrupt(column, err))
}

pub fn get_unsigned(row: &Row, column: &str) -> Result<u64, Error> {
    u64::try_from(get::<i64>(row, column)?).map_err(|err| corrupt(column, err))
}

pub fn get_u32(row: &Row, column: &str) -> Result<u32, Error> {
    u32::try_from(get::<i64>(row, column)?).map_err(|err| corrupt(column, err))
}

pub fn get_version(row: &Row, column: &str) -> Result<VersionNumber, Error> {
    get_unsigned(row, column).map(VersionNumber)
}

pub fn get_time(row: &Row, column: &str) -> Result<SystemTime, Error> {
    time(get(row, column)?).ok_or_else(|| corrupt(column, "not a time"))
}

pub fn get_micros(row: &Row, column: &str) -> Result<Duration, Error> {
    get_unsigned(row, column).map(Duration::from_micros)
}

/// An id.
pub fn get_parsed<T: FromStr<Err: Display>>(row: &Row, column: &str) -> Result<T, Error> {
    get::<&str>(row, column)?.parse().map_err(|err| corrupt(column, err))
}

pub fn get_json<T: DeserializeOwned>(row: &Row, column: &str) -> Result<T, Error> {
    serde_json::from_str(get(row, column)?).map_err(|err| corrupt(column, err))
}

pub fn time(millis: i64) -> Option<SystemTime> {
    let span = Duration::from_millis(millis.unsigned_abs());
    if millis < 0 { UNIX_EPOCH.checked_sub(span) } else { UNIX_EPOCH.checked_add(span) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_to_the_millisecond_on_both_sides_of_1970() {
        for ms in [0, 1, -1, 1_767_225_600_123, -62_135_596_800_000] {
            assert_eq!(millis(time(ms).expect("a time")), ms);
        }
        assert_eq!(span_millis(Duration::MAX), i64::MAX);
        assert_eq!(signed(u64::MAX), i64::MAX);
    }
}
