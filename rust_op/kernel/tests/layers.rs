//! Dependencies point one way: a module of the crate uses only modules of the layers above it in this list, and none of
//! its own layer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The modules of the crate, and those within `microkernel`, `forward` and `backward`; the first ones use no others.
const LAYERS: &[(&str, &[&[&str]])] = &[
    (
        "",
        &[
            &["schema", "rng", "error", "float_env"],
            &["quantize", "noise", "saved", "executor"],
            &["pack", "params", "precision"],
            &["reference"],
            &["microkernel"],
            &["cost"],
            &["weights"],
            &["forward", "backward"],
        ],
    ),
    (
        "microkernel",
        &[
            &["isa", "buffer"],
            &["portable", "avx2", "row_ops", "gauss", "panels"],
            &["avx512", "neon", "form", "output", "amx"],
            &["tier", "tile"],
        ],
    ),
    ("forward", &[&["dac", "product", "epilogue"], &["staging"], &["cut"]]),
    ("backward", &[&["left"], &["right"], &["strip"]]),
];

/// Names in the crate that are not modules.
const ITEMS: &[&str] = &["VERSION"];

/// The source of all files of a module.
fn source(folder: &Path, module: &str) -> String {
    let mut paths = vec![folder.join(format!("{module}.rs")), folder.join(module)];
    let mut text = String::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else {
            text += &fs::read_to_string(&path).unwrap_or_default();
            text.push('\n');
        }
    }
    text
}

/// The code of a file, without comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// The name that follows each `prefix` in `text`; for `{a, b::c}`, the first name of each path in the list.
fn names_after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let name = |text: &'a str| text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => names.extend(list[..list.find('}').expect("a list ends")].split(',').map(|n| name(n.trim()))),
            None => names.push(name(rest)),
        }
    }
    names
}

#[test]
fn modules_use_those_above_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (parent, layers) in LAYERS {
        let folder = root.join(parent);
        let level: BTreeMap<&str, usize> =
            layers.iter().enumerate().flat_map(|(level, modules)| modules.iter().map(move |m| (*m, level))).collect();
        let own = if parent.is_empty() { root.join("lib.rs") } else { root.join(format!("{parent}.rs")) };
        let declared = fs::read_to_string(own).expect("a module");
        let declared: Vec<&str> = code(&declared)
            .lines()
            .filter_map(|line| line.trim().strip_suffix(';')?.split_once("mod ").map(|(_, name)| name.to_owned()))
            .map(|name| *level.get_key_value(&name[..]).unwrap_or_else(|| panic!("{name} is in no layer")).0)
            .collect();
        assert_eq!(declared.len(), level.len(), "modules of {parent:?}");

        let prefixes = if parent.is_empty() {
            vec!["crate::".to_owned()]
        } else {
            // In the folder of a module, `super::` is the module itself.
            vec![format!("crate::{parent}::")]
        };
        for (module, own_level) in &level {
            let code = code(&source(&folder, module));
            let mut used: Vec<&str> = prefixes.iter().flat_map(|prefix| names_after(&code, prefix)).collect();
            if !parent.is_empty() {
                let file = fs::read_to_string(folder.join(format!("{module}.rs"))).expect("a module");
                let file: String = file.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                let names: Vec<String> = names_after(&file, "super::").into_iter().map(str::to_owned).collect();
                used.extend(names.iter().filter_map(|name| level.get_key_value(&name[..]).map(|(name, _)| *name)));
            }
            for name in used.into_iter().filter(|name| name != module && !ITEMS.contains(name)) {
                let Some(level) = level.get(name) else {
                    assert!(!parent.is_empty(), "{module} uses crate::{name}, which is in no layer");
                    continue;
                };
                assert!(level < own_level, "{parent}::{module} uses {name}, which is not above it");
            }
        }
    }
}
