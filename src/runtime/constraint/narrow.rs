//! What a schema leaves open, and a model does not know to leave alone.
//!
//! A JSON schema that lists properties and says nothing about further ones allows them, whatever they are, and integers of
//! any number of digits. Models use that to add some until they run out of tokens. llama.cpp therefore takes a list of
//! properties for all of them unless `additionalProperties` says otherwise, and ends integers after 16 digits. This module
//! does so too, with 15 digits: all of these numbers are told apart by programs that read numbers as floats.

use std::collections::HashSet;

use serde_json::{Map, Value};

const LARGEST_INTEGER: i64 = 999_999_999_999_999;

/// Adds `"additionalProperties": false` to the objects that list properties and say nothing about others, and bounds to
/// integers.
///
/// Where a value must fulfil several schemas at once, each would forbid what the others ask for: they stay as they are.
pub(super) fn narrow(schema: &mut Value) {
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
    if change && !parts_are_parts {
        bound_integers(map);
    }
}

fn bound_integers(map: &mut Map<String, Value>) {
    let types: Vec<&str> = match map.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => return,
    };
    if !types.contains(&"integer") || types.contains(&"number") || map.contains_key("enum") || map.contains_key("const")
    {
        return;
    }
    let given =
        |keys: [&str; 2]| keys.iter().find_map(|key| map.get(*key)).map(|bound| bound.as_f64().unwrap_or(f64::NAN));
    let (least, most) = (given(["minimum", "exclusiveMinimum"]), given(["maximum", "exclusiveMaximum"]));
    let largest = LARGEST_INTEGER as f64;
    // A bound beyond would leave nothing.
    if least.is_none() && most.is_none_or(|most| most > -largest) {
        map.insert("minimum".into(), (-LARGEST_INTEGER).into());
    }
    if most.is_none() && least.is_none_or(|least| least < largest) {
        map.insert("maximum".into(), LARGEST_INTEGER.into());
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

    fn narrowed(mut schema: Value) -> Value {
        narrow(&mut schema);
        schema
    }

    #[test]
    fn lists_of_properties_are_complete() {
        let a = json!({"properties": {"a": {"type": "string"}}});
        let closed_a = json!({"properties": {"a": {"type": "string"}}, "additionalProperties": false});
        assert_eq!(narrowed(a.clone()), closed_a);
        assert_eq!(
            narrowed(json!({"items": a, "prefixItems": [a]})),
            json!({"items": closed_a, "prefixItems": [closed_a]})
        );
        assert_eq!(narrowed(json!({"anyOf": [a]})), json!({"anyOf": [closed_a]}));
        assert_eq!(narrowed(json!({"$ref": "#/$defs/x", "$defs": {"x": a}}))["$defs"]["x"], closed_a);
        for schema in [
            json!({"type": "object"}),
            json!({"properties": {}, "additionalProperties": true}),
            json!({"properties": {}, "patternProperties": {"^x": true}}),
            json!({"const": {"properties": {}}}),
        ] {
            assert_eq!(narrowed(schema.clone()), schema);
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
            assert_eq!(narrowed(schema.clone()), schema);
        }
    }

    #[test]
    fn integers_have_bounds() {
        let bounds = |schema: Value| {
            let schema = narrowed(schema);
            (schema.get("minimum").and_then(Value::as_i64), schema.get("maximum").and_then(Value::as_i64))
        };
        let n = LARGEST_INTEGER;
        assert_eq!(bounds(json!({"type": "integer"})), (Some(-n), Some(n)));
        assert_eq!(bounds(json!({"type": ["null", "integer"], "minimum": 0})), (Some(0), Some(n)));
        assert_eq!(bounds(json!({"type": "integer", "exclusiveMaximum": 5})), (Some(-n), None));
        assert_eq!(bounds(json!({"type": "integer", "minimum": 10 * n})), (Some(10 * n), None));
        assert_eq!(bounds(json!({"type": "integer", "enum": [10 * n]})), (None, None));
        assert_eq!(bounds(json!({"type": "number"})), (None, None));
        let part = json!({"anyOf": [{"type": "integer"}], "properties": {}});
        assert_eq!(narrowed(part.clone()), part);
    }
}
