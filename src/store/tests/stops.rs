//! The list of stop points beside the source.

use super::*;

#[test]
fn every_stop_point_in_the_source_is_in_the_list_and_the_other_way_round() {
    let mut steps = Vec::new();
    let mut points = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::list(&folder).unwrap() {
            let path = folder.join(entry);
            if path.ends_with("src/attach") {
                // It has a list of its own.
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if !path
                .components()
                .any(|part| part.as_os_str().to_string_lossy().starts_with("tests"))
            {
                let text = std::fs::read_to_string(&path).unwrap();
                points.extend(literals(&text, "stop::point(\""));
                steps.extend(
                    literals(&text, "stop::step(self.verb(), \"")
                        .chain(literals(&text, "stop::step(txn.verb(), \""))
                        .chain(literals(&text, "stop::step(txn.intent().verb(), \"")),
                );
            }
        }
    }
    for point in &points {
        assert!(stop::STOP_POINTS.contains(&point.as_str()), "{point} is not in the list");
    }
    for step in &steps {
        assert!(
            stop::STOP_POINTS.iter().any(|listed| listed.split_once('.').unwrap().1 == step),
            "no verb has {step} in the list"
        );
    }
    for listed in stop::STOP_POINTS {
        let step = listed.split_once('.').unwrap().1;
        assert!(
            points.iter().any(|p| p == listed) || steps.iter().any(|s| s == step),
            "{listed} is nowhere in the source"
        );
    }
}

fn literals<'a>(text: &'a str, call: &'a str) -> impl Iterator<Item = String> + 'a {
    text.match_indices(call).map(move |(at, _)| {
        let rest = &text[at + call.len()..];
        rest[..rest.find('"').unwrap()].to_string()
    })
}
