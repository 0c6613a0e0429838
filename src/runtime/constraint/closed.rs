//! Objects with the properties that a schema names and no others.
//!
//! A JSON schema that says nothing about further properties allows them, whatever they are. Models use that to add some
//! until they run out of tokens. llama.cpp therefore takes a list of properties for all of them unless
//! `additionalProperties` says otherwise, and so does this module.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Adds `"additionalProperties": false` to the objects that list properties and say nothing about others.
///
/// Where an object must fulfil several schemas at once, each would forbid what the others ask for: they stay open.
pub(super) fn close(schema: &mut Value) {
    let mut open = HashSet::new();
    loop {
        let n = open.len();
        visit(schema, "#", false, &mut open, false);
        if open.len() == n {
            break;
        }
    }
    visit(schema, "#", false, &mut open, true);
}

/// One pass over a schema and those within. `open`: the definitions that others are fulfilled with, which the pass
/// completes; `is_part`: this schema is one of several.
fn visit(schema: &mut Value, path: &str, is_part: bool, open: &mut HashSet<String>, change: bool) {
    let Value::Object(map) = schema else { return };
    let parts_are_parts = is_part || n_parts(map) > 1;
    if let (true, Some(Value::String(target))) = (parts_are_parts, map.get("$ref")) {
        open.insert(target.clone());
    }
    for (key, value) in map.iter_mut() {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                for (name, inner) in named {
                    let path = format!("{path}/{key}/{}", name.replace('~', "~0").replace('/', "~1"));
                    let is_part = open.contains(&path);
                    visit(inner, &path, is_part, open, change);
                }
            }
            ("allOf" | "anyOf" | "oneOf", Value::Array(parts)) => {
                for (i, part) in parts.iter_mut().enumerate() {
                    visit(part, &format!("{path}/{key}/{i}"), parts_are_parts, open, change);
                }
            }
            ("prefixItems" | "items", Value::Array(items)) => {
                for (i, item) in items.iter_mut().enumerate() {
                    visit(item, &format!("{path}/{key}/{i}"), false, open, change);
                }
            }
            ("items" | "additionalItems" | "additionalProperties", inner) => {
                visit(inner, &format!("{path}/{key}"), false, open, change);
            }
            _ => {}
        }
    }
    let says = |key| map.contains_key(key);
    if change && !parts_are_parts && says("properties") && !says("additionalProperties") && !says("patternProperties") {
        map.insert("additionalProperties".into(), Value::Bool(false));
    }
}

/// How many schemas a value must fulfil by this one.
fn n_parts(map: &Map<String, Value>) -> usize {
    let all_of = map.get("allOf").and_then(Value::as_array).map_or(0, Vec::len);
    all_of + ["properties", "anyOf", "oneOf", "$ref"].iter().filter(|key| map.contains_key(**key)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn closed(mut schema: Value) -> Value {
        close(&mut schema);
        schema
    }

    #[test]
    fn lists_of_properties_are_complete() {
        let a = json!({"properties": {"a": {"type": "integer"}}});
        let closed_a = json!({"properties": {"a": {"type": "integer"}}, "additionalProperties": false});
        assert_eq!(closed(a.clone()), closed_a);
        assert_eq!(
            closed(json!({"items": a, "prefixItems": [a]})),
            json!({"items": closed_a, "prefixItems": [closed_a]})
        );
        assert_eq!(closed(json!({"anyOf": [a]})), json!({"anyOf": [closed_a]}));
        assert_eq!(closed(json!({"$ref": "#/$defs/x", "$defs": {"x": a}}))["$defs"]["x"], closed_a);
        for schema in [
            json!({"type": "object"}),
            json!({"properties": {}, "additionalProperties": true}),
            json!({"properties": {}, "patternProperties": {"^x": true}}),
            json!({"const": {"properties": {}}}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }

    #[test]
    fn parts_stay_open() {
        let (a, b) = (json!({"properties": {"a": {}}}), json!({"properties": {"b": {}}}));
        for schema in [
            json!({"allOf": [a, b]}),
            json!({"properties": {"c": {}}, "anyOf": [a, b]}),
            json!({"allOf": [{"$ref": "#/$defs/x"}, b], "$defs": {"x": a}}),
            json!({"allOf": [{"$ref": "#/$defs/y"}, b], "$defs": {"x": a, "y": {"$ref": "#/$defs/x"}}}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
