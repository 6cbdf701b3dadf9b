//! Statements that are put together from parts.

use super::{Query, Value};

/// Collects a statement's text and its values. Text comes from the program alone; whatever a caller sent is bound.
#[derive(Debug)]
pub struct Builder<'q> {
    text: String,
    values: Vec<Value<'q>>,
}

impl<'q> Builder<'q> {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), values: Vec::new() }
    }

    pub fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    pub fn push_bind(&mut self, value: impl Into<Value<'q>>) -> &mut Self {
        self.values.push(value.into());
        self.text.push('$');
        self.text.push_str(&self.values.len().to_string());
        self
    }

    /// `($1, $2), ($3, $4)`.
    pub fn push_rows(&mut self, rows: impl IntoIterator<Item = Vec<Value<'q>>>) -> &mut Self {
        for (n, row) in rows.into_iter().enumerate() {
            self.push(if n == 0 { "(" } else { ", (" });
            self.push_list(row);
            self.push(")");
        }
        self
    }

    /// `$1, $2, $3`.
    pub fn push_list(&mut self, values: impl IntoIterator<Item = impl Into<Value<'q>>>) -> &mut Self {
        for (n, value) in values.into_iter().enumerate() {
            if n > 0 {
                self.push(", ");
            }
            self.push_bind(value);
        }
        self
    }

    pub fn build(self) -> Query<'q> {
        Query::with(self.text, self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_in_the_order_they_come() {
        let mut sql = Builder::new("SELECT a WHERE b = ");
        sql.push_bind(1).push(" AND c IN (").push_list(["x", "y"]).push(") OR (d, e) IN (VALUES ");
        sql.push_rows([vec![2.into(), "z".into()], vec![3.into(), "w".into()]]).push(")");
        assert_eq!(sql.text, "SELECT a WHERE b = $1 AND c IN ($2, $3) OR (d, e) IN (VALUES ($4, $5), ($6, $7))");
        assert_eq!(sql.values.len(), 7);
    }
}
