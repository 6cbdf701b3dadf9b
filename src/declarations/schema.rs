//! JSON Schema → the TypeScript type of what matches it. What it cannot say is `any`: a type must not refuse an event that is right.

use serde_json::{Map, Value};

use super::quoted;

/// Of nested types, `$ref`s followed included: they may go round in circles.
const DEPTH_MAX: usize = 16;
/// Of one type's text.
const BYTES_MAX: usize = 32 << 10;
const ANY: &str = "any";

pub(super) fn to_type(schema: &Value) -> String {
    let mut left = BYTES_MAX;
    Schema { root: schema }.of(schema, 0, &mut left)
}

struct Schema<'a> {
    /// Where `$ref`s begin.
    root: &'a Value,
}

impl Schema<'_> {
    fn of(&self, schema: &Value, depth: usize, left: &mut usize) -> String {
        let Some(fields) = schema.as_object().filter(|_| depth < DEPTH_MAX && *left > 0) else { return ANY.to_owned() };
        let text = self.of_fields(fields, depth, left);
        if text.len() > *left {
            *left = 0;
            return ANY.to_owned();
        }
        *left -= text.len();
        text
    }

    fn of_fields(&self, fields: &Map<String, Value>, depth: usize, left: &mut usize) -> String {
        if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
            let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            return target.map_or_else(|| ANY.to_owned(), |target| self.of(target, depth + 1, left));
        }
        if let Some(value) = fields.get("const") {
            return literal(value);
        }
        if let Some(values) = fields.get("enum").and_then(Value::as_array) {
            return joined(values.iter().map(literal), " | ");
        }
        for (word, operator) in [("oneOf", " | "), ("anyOf", " | "), ("allOf", " & ")] {
            if let Some(parts) = fields.get(word).and_then(Value::as_array) {
                let parts: Vec<String> = parts.iter().map(|part| self.of(part, depth + 1, left)).collect();
                let own = fields.contains_key("properties").then(|| self.object(fields, depth, left));
                let text = format!("({})", joined(parts.into_iter(), operator));
                return own.map_or(text.clone(), |own| format!("({own} & {text})"));
            }
        }
        match fields.get("type") {
            Some(Value::String(name)) => self.named(name, fields, depth, left),
            Some(Value::Array(names)) => {
                let names = names.iter().filter_map(Value::as_str);
                joined(names.map(|name| self.named(name, fields, depth, left)), " | ")
            }
            _ if fields.contains_key("properties") => self.object(fields, depth, left),
            _ => ANY.to_owned(),
        }
    }

    fn named(&self, name: &str, fields: &Map<String, Value>, depth: usize, left: &mut usize) -> String {
        match name {
            "string" | "boolean" | "null" => name.to_owned(),
            "number" | "integer" => "number".to_owned(),
            "object" => self.object(fields, depth, left),
            "array" => {
                let items = fields.get("items").map_or_else(|| ANY.to_owned(), |items| self.of(items, depth + 1, left));
                format!("Array<{items}>")
            }
            _ => ANY.to_owned(),
        }
    }

    /// Of one that names properties, others are refused unless it speaks of them: so that misspelled ones are found.
    fn object(&self, fields: &Map<String, Value>, depth: usize, left: &mut usize) -> String {
        let properties =
            fields.get("properties").and_then(Value::as_object).filter(|properties| !properties.is_empty());
        let open = match fields.get("additionalProperties") {
            None => properties.is_none(),
            Some(more) => *more != Value::Bool(false),
        };
        let required = fields.get("required").and_then(Value::as_array);
        let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|one| one == name));
        let mut parts = Vec::new();
        for (name, of) in properties.into_iter().flatten() {
            let mark = if is_required(name) { "" } else { "?" };
            parts.push(format!("{}{mark}: {}", quoted(name), self.of(of, depth + 1, left)));
        }
        let listed = |name: &str| properties.is_some_and(|properties| properties.contains_key(name));
        for name in required.into_iter().flatten().filter_map(Value::as_str).filter(|name| !listed(name)) {
            parts.push(format!("{}: any", quoted(name)));
        }
        if open {
            parts.push("[property: string]: any".to_owned());
        }
        format!("{{ {} }}", parts.join("; "))
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
        Value::Array(_) | Value::Object(_) => ANY.to_owned(),
    }
}

/// Nothing matches an empty list; a type that says so would help nobody.
fn joined(parts: impl Iterator<Item = String>, operator: &str) -> String {
    let text = parts.collect::<Vec<_>>().join(operator);
    if text.is_empty() { ANY.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_becomes_a_type() {
        for (schema, expected) in [
            (json!({ "type": "object" }), "{ [property: string]: any }"),
            (
                json!({ "type": "object", "properties": { "id": { "type": "integer" }, "tags": { "type": "array", "items": { "type": "string" } } },
                    "required": ["id", "total"] }),
                r#"{ "id": number; "tags"?: Array<string>; "total": any }"#,
            ),
            (json!({ "type": ["string", "null"] }), "string | null"),
            (json!({ "enum": ["a", 1, null, {}] }), r#""a" | 1 | null | any"#),
            (json!({ "enum": [] }), "any"),
            (json!({ "oneOf": [{ "const": true }, { "type": "number" }] }), "(true | number)"),
            (json!({ "$ref": "#/$defs/x", "$defs": { "x": { "type": "string" } } }), "string"),
            (json!({ "$ref": "https://elsewhere" }), "any"),
            (
                json!({ "properties": { "a": true }, "additionalProperties": true }),
                r#"{ "a"?: any; [property: string]: any }"#,
            ),
            (json!(true), "any"),
        ] {
            assert_eq!(to_type(&schema), expected, "{schema}");
        }
    }

    #[test]
    fn circles_and_giants_end() {
        let circle = json!({ "type": "object", "properties": { "a": { "$ref": "#" }, "b": { "$ref": "#" } } });
        assert!(to_type(&circle).len() <= BYTES_MAX);
        let names = (0..5000).map(|n| (format!("property{n}"), json!({ "type": "string" }))).collect::<Map<_, _>>();
        assert_eq!(to_type(&json!({ "type": "object", "properties": names })), "any");
    }
}
