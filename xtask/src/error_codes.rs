//! The error codes as the core crate declares them, and as docs/errors.md must list them.

use std::fmt::Write;

/// Where they are declared.
pub const SOURCE: &str = "crates/core/src/error.rs";
/// Where they are documented.
pub const DOCUMENT: &str = "docs/errors.md";

/// One declaration: `/// meaning` and `Name = "ERR_…" => Kind,`.
#[derive(Debug, PartialEq, Eq)]
pub struct ErrorCode {
    pub code: String,
    pub kind: String,
    pub meaning: String,
}

/// The codes in the `codes! { … }` block of `source`, in its order.
pub fn parse(source: &str) -> Vec<ErrorCode> {
    let block = source.lines().skip_while(|line| *line != "codes! {").skip(1).take_while(|line| *line != "}");
    let (mut codes, mut meaning) = (Vec::new(), Vec::new());
    for line in block.map(str::trim) {
        if let Some(comment) = line.strip_prefix("///") {
            meaning.push(comment.trim());
        } else if let Some((code, kind)) = declaration(line) {
            codes.push(ErrorCode { code, kind, meaning: std::mem::take(&mut meaning).join(" ") });
        }
    }
    codes
}

fn declaration(line: &str) -> Option<(String, String)> {
    let (_, rest) = line.split_once("= \"")?;
    let (code, rest) = rest.split_once('"')?;
    Some((code.to_string(), rest.trim_start_matches([' ', '=', '>']).trim_end_matches(',').to_string()))
}

/// The name of the TypeScript class of a kind; a defect of the library has only the base class.
fn class(kind: &str) -> String {
    if kind == "Internal" { "SyncBnError".into() } else { format!("{kind}Error") }
}

/// The table of docs/errors.md.
pub fn table(codes: &[ErrorCode]) -> String {
    let mut table = String::from("| Code | Class | Meaning |\n| --- | --- | --- |\n");
    for ErrorCode { code, kind, meaning } in codes {
        let _ = writeln!(table, "| `{code}` | `{}` | {meaning} |", class(kind));
    }
    table
}

/// (code, the row's words) of every table row of `document` whose first cell is a code in backticks.
pub fn documented(document: &str) -> Vec<(String, Vec<String>)> {
    let rows = document.lines().filter(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect::<Vec<_>>();
    let code = |cells: &[String]| Some(cells.first()?.strip_prefix("`ERR_")?.strip_suffix('`')?.to_string());
    rows.map(cells).filter_map(|cells| Some((format!("ERR_{}", code(&cells)?), cells))).collect()
}

/// What differs between the declared and the documented codes.
pub fn differences(codes: &[ErrorCode], document: &str) -> Vec<String> {
    let rows = documented(document);
    let listed: Vec<&str> = rows.iter().map(|(code, _)| code.as_str()).collect();
    let mut found = Vec::new();
    for ErrorCode { code, kind, .. } in codes {
        match rows.iter().filter(|(row, _)| row == code).collect::<Vec<_>>()[..] {
            [(_, cells)] if !cells.iter().any(|cell| cell.contains(&class(kind))) => {
                found.push(format!("{DOCUMENT}: {code} is a {}", class(kind)));
            }
            [_] => {}
            [] => found.push(format!("{DOCUMENT}: {code} is missing")),
            _ => found.push(format!("{DOCUMENT}: {code} is listed more than once")),
        }
    }
    let unknown = listed.into_iter().filter(|listed| !codes.iter().any(|known| known.code == *listed));
    found.extend(unknown.map(|code| format!("{DOCUMENT}: {code} is no code of {SOURCE}")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "x\ncodes! {\n    /// One thing\n    /// or another.\n    A = \"ERR_A\" => Shape,\n    \
                          /// B.\n    B = \"ERR_B\" => Io,\n}\n/// C.\nC = \"ERR_C\" => No,\n";

    #[test]
    fn codes_are_read_with_kind_and_meaning() {
        let code = |code: &str, kind: &str, meaning: &str| ErrorCode {
            code: code.into(),
            kind: kind.into(),
            meaning: meaning.into(),
        };
        let expected = [code("ERR_A", "Shape", "One thing or another."), code("ERR_B", "Io", "B.")];
        assert_eq!(parse(SOURCE), expected);
    }

    #[test]
    fn the_printed_table_is_complete_and_every_deviation_is_found() {
        let codes = parse(SOURCE);
        let table = table(&codes);
        assert!(differences(&codes, &table).is_empty());
        let deviations = [
            (table.replace("| `ERR_B`", "| ERR_B"), "ERR_B is missing"),
            (table.replace("ShapeError", "OtherError"), "ERR_A is a ShapeError"),
            (format!("{table}{table}"), "ERR_A is listed more than once"),
            (format!("{table}| `ERR_D` | `X` | y |\n"), "ERR_D is no code"),
        ];
        for (document, expected) in deviations {
            let found = differences(&codes, &document).join("\n");
            assert!(found.contains(expected), "{found}");
        }
    }
}
