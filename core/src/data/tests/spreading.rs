//! Rows are held out and spread over clients.

use super::*;

#[test]
fn the_demo_set_has_eight_skills_with_twelve_rows_held_out_of_each() {
    let demo = Dataset::demo().unwrap();
    let split = demo.split_holdout(HoldOut::Marked, 0).unwrap();
    assert!(demo.marks_holdout());
    assert_eq!((demo.len(), split.train.len(), split.held_out.len()), (480, 384, 96));
    let shards = Partition::BySource.split(&demo, &split.train, 8, 48, 0).unwrap();
    let skills: Vec<_> = shards.iter().map(|s| s.groups.join("+")).collect();
    let expected =
        ["units", "polite", "extract", "sort", "company", "dates", "triage", "checklist"];
    assert_eq!(skills, expected);
    for shard in Partition::BySource.split(&demo, &split.held_out, 8, 12, 0).unwrap() {
        assert_eq!(shard.rows.len(), 12);
    }
    let seen: std::collections::HashSet<_> =
        split.train.iter().map(|&row| demo.group(row).unwrap()).collect();
    assert!(split.held_out.iter().all(|&row| !seen.contains(&demo.group(row).unwrap())));
}

#[test]
fn a_hold_out_depends_on_seed_and_text_and_keeps_groups_together() {
    let row = |i: usize| format!("{{\"instruction\":\"q{}\",\"response\":\"{i}\"}}\n", i / 3);
    let text: String = (0..300).map(row).collect();
    let set = open_text("instruction", &text).unwrap();
    let split = set.split_holdout(HoldOut::Fraction(0.1), 7).unwrap();
    assert_eq!(split.held_out.len(), 30);
    assert_eq!(split.train.len() + split.held_out.len(), 300);
    for group in split.held_out.chunks(3) {
        assert!(group[0].is_multiple_of(3) && group[2] == group[0] + 2, "{group:?}");
    }
    assert_eq!(set.split_holdout(HoldOut::Fraction(0.1), 7).unwrap(), split);
    assert_ne!(set.split_holdout(HoldOut::Fraction(0.1), 8).unwrap(), split);
    assert_eq!(set.split_holdout(HoldOut::Rows(31), 7).unwrap().held_out.len(), 33);
    for bad in [HoldOut::Fraction(0.0), HoldOut::Fraction(f64::NAN), HoldOut::Fraction(1.0)] {
        assert!(matches!(set.split_holdout(bad, 7), Err(HoldOutError::Fraction(_))));
    }
    for bad in [HoldOut::Rows(0), HoldOut::Rows(300), HoldOut::Rows(299), HoldOut::Marked] {
        assert!(matches!(set.split_holdout(bad, 7), Err(HoldOutError::NothingLeft { .. })));
    }
}

/// 600 rows: `label` has three classes of 300, 200 and 100 rows.
fn labelled() -> Dataset {
    let class = |i: usize| ["a", "a", "a", "b", "b", "c"][i % 6];
    let row =
        |i| format!("{{\"instruction\":\"{i}\",\"response\":\"\",\"label\":\"{}\"}}\n", class(i));
    open_text("instruction", &(0..600).map(row).collect::<String>()).unwrap()
}

fn all_rows(shards: &[Shard]) -> Vec<u32> {
    let mut rows: Vec<u32> = shards.iter().flat_map(|s| s.rows.iter().copied()).collect();
    rows.sort_unstable();
    rows
}

/// Mean over clients of the share of a client's most frequent class.
fn concentration(set: &Dataset, shards: &[Shard]) -> f64 {
    let share = |shard: &Shard| {
        let mut counts = std::collections::HashMap::new();
        for &row in &shard.rows {
            let label = set.record(row).unwrap().field("label").unwrap().to_owned();
            *counts.entry(label).or_insert(0usize) += 1;
        }
        *counts.values().max().unwrap() as f64 / shard.rows.len() as f64
    };
    shards.iter().map(share).sum::<f64>() / shards.len() as f64
}

#[test]
fn every_partition_uses_each_row_once_and_follows_from_the_seed() {
    let set = labelled();
    for name in
        ["iid", "dirichlet:0.3", "dirichlet:1e-6", "dirichlet:1e6", "by-field:label", "by-source"]
    {
        let partition: Partition = name.parse().unwrap();
        assert_eq!(partition.to_string().parse::<Partition>().unwrap(), partition);
        let split = |seed| partition.split(&set, &set.rows(), 7, 1, seed).unwrap();
        assert_eq!(all_rows(&split(1)), set.rows(), "{name}");
        assert_eq!(split(1), split(1), "{name}");
        assert_ne!(split(1), split(2), "{name}");
    }
}

#[test]
fn a_small_alpha_concentrates_classes_and_a_large_one_does_not() {
    let set = labelled();
    let split = |alpha: f64| {
        let partition = Partition::Dirichlet { alpha, field: None };
        let shards = partition.split(&set, &set.rows(), 12, 50, 3).unwrap();
        assert!(shards.iter().all(|shard| shard.rows.len() == 50));
        concentration(&set, &shards)
    };
    let (small, medium, large) = (split(0.05), split(10.0), split(1e5));
    assert!(small > 0.65 && small > medium && medium > large, "{small} {medium} {large}");
    assert!((large - 0.5).abs() < 0.1, "half of all rows are of one class: {large}");
}

#[test]
fn groups_of_clients_share_a_field_value_and_few_clients_hold_several() {
    let set = labelled();
    let partition: Partition = "by-field:label".parse().unwrap();
    let shards = partition.split(&set, &set.rows(), 7, 1, 0).unwrap();
    let sizes: Vec<_> = shards.iter().map(|s| (s.groups[0].as_str(), s.rows.len())).collect();
    let expected =
        [("a", 100), ("b", 100), ("c", 50), ("a", 100), ("b", 100), ("c", 50), ("a", 100)];
    assert_eq!(sizes, expected);
    let shards = partition.split(&set, &set.rows(), 2, 1, 0).unwrap();
    assert_eq!(shards[0].groups, ["a"]);
    assert_eq!(shards[1].groups, ["b", "c"]);
}

#[test]
fn partitions_that_cannot_be_made_say_why() {
    let set = labelled();
    let split = |name: &str, clients, min| {
        let partition: Partition = name.parse().unwrap();
        partition.split(&set, &set.rows(), clients, min, 0).unwrap_err().to_string()
    };
    assert_eq!(split("iid", 0, 1), "rows cannot be spread over 0 clients");
    let error = split("by-field:label", 10, 60);
    assert!(error.contains("would hold 33 rows of c, fewer than the 60"), "{error}");
    assert!(split("iid", 601, 0).contains("would hold 0 rows"));
    let error = split("by-field:topic", 3, 1);
    assert!(error.contains("rows.jsonl:1") && error.contains("`topic`") && error.contains("label"));
    for bad in ["dirichlet:0", "dirichlet:-1", "dirichlet:nan", "dirichlet:x"] {
        assert!(matches!(bad.parse::<Partition>(), Err(PartitionNameError::Alpha(_))), "{bad}");
    }
    for bad in ["", "iid:3", "dirichlet", "dirichlet:1:", "by-field", "by-field:", "IID"] {
        assert!(matches!(bad.parse::<Partition>(), Err(PartitionNameError::Unknown(_))), "{bad}");
    }
}
