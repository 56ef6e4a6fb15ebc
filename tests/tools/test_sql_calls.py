"""Which functions a reading SQL tool lets through: ordinary questions pass, the rest is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenter.tools.sql_functions import ALLOWED, SYNTAX
from tenter.tools.sql_text import SQLRefused, read_sql

ORDINARY = {
    "postgresql": [
        "SELECT a.region, date_trunc('month', o.at) AS m, sum(o.total) FILTER (WHERE o.paid) AS paid, count(*) FROM orders o JOIN areas a ON a.id = o.area_id WHERE o.at >= now() - interval '90 days' GROUP BY 1, 2 HAVING sum(o.total) > 100 ORDER BY m DESC NULLS LAST LIMIT 10",
        "SELECT id, row_number() OVER (PARTITION BY city ORDER BY total DESC) AS n, lag(total, 1) OVER w, avg(total) OVER (ORDER BY at ROWS BETWEEN 6 PRECEDING AND CURRENT ROW) FROM orders WINDOW w AS (ORDER BY at)",
        "WITH RECURSIVE tree(id, depth) AS (SELECT id, 0 FROM nodes WHERE parent IS NULL UNION ALL SELECT n.id, t.depth + 1 FROM nodes n JOIN tree t ON n.parent = t.id) SELECT max(depth) FROM tree",
        "WITH top AS MATERIALIZED (SELECT * FROM t) SELECT top.a FROM top",
        "SELECT d->>'name', d #>> '{a,b}', d @> '{\"a\": 1}', jsonb_array_elements(d->'tags') FROM docs WHERE d ? 'x'",
        "SELECT e.key, e.value FROM docs, jsonb_each(docs.d) AS e",
        "SELECT r.a, r.b FROM docs d, LATERAL jsonb_to_recordset(d.items) AS r(a int, b text)",
        "SELECT u.x, u.n FROM t, unnest(t.tags) WITH ORDINALITY AS u(x, n)",
        "SELECT g.i FROM generate_series(1, 10) AS g(i) LEFT JOIN orders o ON o.id = g.i",
        "SELECT g FROM generate_series('2024-01-01'::date, '2024-02-01', '1 day') g",
        "SELECT extract(epoch FROM at), to_char(at, 'YYYY-MM'), at AT TIME ZONE 'UTC', age(at), date_part('dow', at), at::date FROM orders",
        "SELECT lower(name), initcap(name), substring(name FROM 1 FOR 3), position('a' IN name), trim(both ' ' from name), split_part(name, ' ', 1), regexp_replace(name, '[^a-z]', '', 'g'), name ~* 'x', name SIMILAR TO 'a%', concat_ws(', ', a, b), left(name, 2), right(name, 2), overlay(name placing 'x' from 2), name || 'é' FROM t",
        "SELECT round(avg(x)::numeric, 2), ceil(x), floor(x), power(x, 2), sqrt(x), mod(a, b), abs(-x), x::numeric(10,2), CAST(x AS varchar(10)), ln(x), greatest(a, b), least(a, b), random() FROM t GROUP BY 2,3",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY total), mode() WITHIN GROUP (ORDER BY x), stddev(x), corr(a, b), string_agg(name, ', ' ORDER BY name), array_agg(DISTINCT x), json_agg(t), bool_or(a), jsonb_object_agg(k, v) FROM t",
        "SELECT CASE WHEN x IN (1, 2) THEN 'a' WHEN (x > 3) THEN 'b' ELSE NULL END, coalesce(x, 0), nullif(a, b), EXISTS (SELECT 1 FROM u), x = ANY (ARRAY[1, 2]), NOT (a AND b) FROM t",
        "SELECT DISTINCT ON (city) city, total FROM orders ORDER BY city, total DESC",
        "(SELECT 1) UNION ALL (SELECT 2) EXCEPT (SELECT 3)",
        "VALUES (1, 'a'), (2, 'b')",
        "SELECT * FROM (VALUES (1, 'a'), (2, 'b')) AS v(id, name) WHERE v.id > 1",
        "SELECT region, city, sum(x) FROM t GROUP BY GROUPING SETS ((region), (region, city), ())",
        "SELECT region, sum(x), grouping(region) FROM t GROUP BY ROLLUP (region)",
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog')",
        "SELECT pg_size_pretty(pg_total_relation_size('orders'))",
        "SELECT c.relname, obj_description(c.oid) FROM pg_catalog.pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace",
        'SELECT "Order"."Total", o.* FROM public."Order" JOIN shop.orders o USING (id)',
        "SELECT public.orders.id FROM public.orders",
        "SELECT E'a\\nb', 'it''s', 1.5e3, .5, 0, -1 FROM t -- a note\n/* another: 'x' */ WHERE a <> 1 AND b != 2",
        "SELECT x.total FROM orders o CROSS JOIN LATERAL (SELECT sum(p.price) AS total FROM parts p WHERE p.order_id = o.id) x",
        "SELECT ts_rank(to_tsvector('english', body), plainto_tsquery('lamp')) FROM docs WHERE to_tsvector(body) @@ to_tsquery('lamp & desk')",
        "SELECT count(*) FROM generate_series(1, 1000000000)",
        "SELECT generate_series(1, 100000000)",
        "SELECT repeat('x',8000000) FROM generate_series(1,100)",
        "SELECT total FROM orders WHERE id = :id AND '50%' = '50%'",
        "SELECT * FROM t TABLESAMPLE SYSTEM (10)",
        "SELECT current_date, current_timestamp, current_user, localtime",
        "SELECT (jsonb_each(d)).key FROM docs",
        "SELECT a[1], a[1:2], ARRAY[[1,2],[3,4]] FROM t",
        "SELECT make_date(2024, 1, 31) + interval '1 month'",
        "SELECT sum(CASE WHEN a THEN 1 ELSE 0 END)::float / nullif(count(*), 0) FROM t",
        "SELECT m.x FROM t AS m (x, y)",
        "SELECT größe FROM möbel WHERE name LIKE '%ü%' ESCAPE '!'",
        "SELECT time '10:00', date '2024-01-01', timestamp '2024-01-01 10:00' FROM t FETCH FIRST 5 ROWS ONLY",
        "SELECT width_bucket(x, 0, 10, 5), ntile(4) OVER (ORDER BY x) FROM t",
        "SELECT count(DISTINCT (a, b)) FROM t",
        "SELECT * FROM a NATURAL JOIN b WHERE (a.x, b.y) IN (SELECT x, y FROM c)",
        "SELECT format('%s-%s', a, b), md5(x), encode(sha256(x::bytea), 'hex'), length(x), gen_random_uuid() FROM t",
        "SELECT pid, query FROM pg_stat_activity WHERE query LIKE '%1000000000)'",
        "SELECT JSON_VALUE(d, '$.a'), json_object('a': 1) FROM t",
    ],
    "sqlite": [
        "SELECT strftime('%Y-%m', at), date('now', '-1 day'), julianday(at), datetime(at, 'unixepoch') FROM orders",
        "SELECT json_extract(d, '$.a'), d ->> '$.b', e.key, e.value FROM docs, json_each(docs.d) AS e",
        "SELECT group_concat(name, ', '), total(x), ifnull(a, b), iif(a, 1, 2), typeof(x), printf('%.2f', x), instr(a, 'b'), x GLOB 'a*', hex(b) FROM t",
        "SELECT [a b], `c` FROM [my table]",
        "SELECT name, sql FROM sqlite_master WHERE type = 'table'",
        "SELECT id, rank() OVER (ORDER BY total) FROM orders",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
        "SELECT count(*) AS n FROM orders WHERE id < :below AND note <> ':below'",
        "SELECT x'00ff', CAST(a AS INTEGER), a COLLATE NOCASE FROM t",
        "SELECT * FROM docs WHERE docs MATCH 'lamp' ORDER BY bm25(docs)",
        "SELECT random()",
        "SELECT hex(zeroblob(1)) FROM t",
        "VALUES (1)",
        "SELECT substr(a,1,2), replace(a,'x','y'), upper(a), round(x,2), max(a,b), unixepoch('now') FROM t",
        "SELECT fts.body, highlight(fts, 0, '<', '>') FROM fts",
    ],
    "duckdb": [
        "SELECT i, sum(x) FROM t GROUP BY ALL",
        "SELECT * EXCLUDE (a), COLUMNS('b.*') FROM t",
        "SELECT * REPLACE (a + 1 AS a) FROM t",
        "FROM t",
        "SELECT list_transform([1, 2], x -> x + 1), {'a': 1}.a, list_sum([1]), len('a'), [1,2][1], struct_pack(a := 1)",
        "SELECT quantile_cont(x, 0.9), arg_max(a, b), approx_count_distinct(c), median(x), histogram(x) FROM t",
        "SELECT date_diff('day', a, b), strftime(a, '%Y'), time_bucket(interval '1 hour', at), epoch(at) FROM t QUALIFY row_number() OVER (PARTITION BY a ORDER BY b) = 1",
        "SELECT * FROM t ASOF JOIN u ON t.a >= u.a",
        "SELECT unnest([1,2]), range(3), generate_series(1, 3)",
        "SELECT name.upper().lower() FROM t",
        "SELECT d->>'$.a', json_extract_string(d, '$.b') FROM t",
        "SELECT * FROM t USING SAMPLE 10",
        "SELECT map {'a': 1}, x::DECIMAL(10,2), TRY_CAST(x AS INT), x IS DISTINCT FROM y FROM t",
        "SELECT string_agg(a, ','), list(a ORDER BY a), count(*) FILTER (WHERE a > 1), any_value(b) FROM t",
        "SELECT sum(i) AS s FROM t",
        "SELECT a FROM range(10) r(a)",
        "SELECT * FROM duckdb_tables()",
        "SELECT count(*) FROM t, t b",
        "SELECT regexp_extract(a,'x',1), levenshtein(a,b), a ILIKE 'x%' FROM t",
        "SELECT printf('%d', a), year(b), monthname(b), b + INTERVAL 1 DAY FROM t LIMIT 5 OFFSET 2",
    ],
}

REACHING = {
    "postgresql": [
        "SELECT U&\"pg\\005fread\\005ffile\"('/etc/hostname')",
        "SELECT U&'a'",
        "SELECT a$$, pg_read_file('x'), b$$ FROM t",
        "SELECT $$a$$",
        "SELECT \"pg_read_file\"('x')",
        "SELECT pg_catalog.pg_read_file('x')",
        "SELECT pg_catalog . /* x */ pg_sleep /* y */ (1)",
        "SELECT public.lower('x')",
        "SELECT * FROM pg_ls_dir('.')",
        "SELECT * FROM ROWS FROM (pg_ls_dir('.')) t",
        "SELECT * FROM t, LATERAL pg_ls_dir(t.a) x",
        "SELECT ts_stat('select 1')",
        "SELECT ts_rewrite('a', 'select')",
        "SELECT nextval('x')",
        "SELECT current_setting('x')",
        "SELECT edit_distance(a, b)",
        "WITH pg_read_file(x) AS (SELECT 1) SELECT pg_read_file('x')",
        "WITH read_csv(x) AS (SELECT 1) SELECT * FROM read_csv('x')",
        "SELECT 1 FROM t AS pg_sleep(x) WHERE pg_sleep(1) IS NULL",
        "SELECT ('/etc/hostname'::text).pg_read_file",
        "SELECT f.pg_read_file FROM concat('/etc/','hostname') AS f",
        "SELECT concat.pg_read_file FROM concat('/etc/','hostname')",
        "SELECT u.pg_read_file FROM unnest(array['/etc/hostname']) u",
        "SELECT u.pg_read_file FROM rows from (unnest(array['/etc/hostname'])) u",
        "SELECT (array['/etc/hostname'::text])[1].pg_read_file",
        "SELECT ((array['/etc/hostname'::text])[1]).pg_read_file",
        "select u.pg_read_file from lateral unnest(array['/etc/hostname']) u",
        "select d.pg_read_file from cast('/etc/hostname' as text) d",
        "select d.pg_read_file from coalesce('/etc/hostname'::text) d",
        "SELECT DISTINCT ON (1) pg_read_file('x')",
        "SELECT crosstab('select 1')",
        "SELECT connectby('a')",
        "SELECT xpath_table('a')",
        "SELECT pg_sleep(1)",
        "SELECT pg_stat_reset()",
        "SELECT pg_backup_start('x')",
        "SELECT 1 /* /* */ , pg_sleep(1) */",
        "SELECT 1 {# , 2 #}",
        "SELECT 'a' \xa0, 1",
        "SELECT query_to_xml('select 1',true,true,'')",
        "SELECT * FROM XMLTABLE('x' PASSING y COLUMNS a int)",
        "SELECT lo_get(1)",
        "SELECT (SELECT pg_sleep(1))",
        "SELECT a FROM t ORDER BY pg_sleep(1)",
        "SELECT count(*) OVER (ORDER BY pg_sleep(1)) FROM t",
        "SELECT CASE WHEN pg_sleep(1) IS NULL THEN 1 END",
        "SELECT (t.a).pg_read_file FROM t",
        "SELECT pg_sleep ( 1 )",
        'SELECT "pg_catalog"."pg_sleep"(1)',
        "SELECT a FROM t LIMIT pg_sleep(1)",
        "SELECT VARIADIC pg_sleep(1)",
        "SELECT * FROM JSON_TABLE(pg_read_file('x'), '$' COLUMNS (a int))",
        "SELECT 1 OPERATOR(pg_catalog.+) 2, pg_sleep(1)",
        "SELECT f.pg_read_file FROM LATERAL (concat('a')) f",
        "SELECT x.* FROM current_user x, LATERAL (SELECT y.pg_sleep FROM abs(2) y) z",
    ],
    "sqlite": [
        "SELECT load_extension('x')",
        "SELECT writefile('x','y')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT readfile('x')",
        "SELECT edit('x')",
        "SELECT * FROM fsdir('.')",
    ],
    "duckdb": [
        "SELECT * FROM query('select 1')",
        "SELECT * FROM query_table('t')",
        "SELECT nextval('s')",
        "SELECT getenv('HOME')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT '/etc/hostname'.read_text()",
        "SELECT * FROM sniff_csv('x')",
        "SELECT * FROM checkpoint()",
        "SELECT write_log('x')",
        "SELECT current_setting('x')",
        "SELECT * FROM duckdb_secrets()",
        "SELECT sleep_ms(1)",
        "SELECT setseed(0.1)",
        "SELECT pg_sleep(1)",
        "SELECT * FROM json_execute_serialized_sql('x')",
        "SELECT getvariable('x')",
    ],
}


def cases(queries: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(engine, sql) for engine, several in queries.items() for sql in several]


@pytest.mark.parametrize(("engine", "sql"), cases(ORDINARY))
def test_an_ordinary_question_passes(engine: str, sql: str) -> None:
    assert not read_sql(sql, engine).changes


@pytest.mark.parametrize(("engine", "sql"), cases(REACHING))
def test_what_may_reach_beyond_the_tables_is_refused(engine: str, sql: str) -> None:
    with pytest.raises(SQLRefused):
        read_sql(sql, engine)


def test_an_author_allows_functions_of_theirs() -> None:
    own = frozenset({"edit_distance", "geo.surface"})
    one = read_sql(
        "SELECT Edit_Distance(a, b), geo.surface(c), lower(d) FROM t", "postgresql", False, own
    )
    assert one.varies, "what such a function answers by is not known"
    assert not read_sql("SELECT lower(d) FROM t", "postgresql", False, own).varies
    for sql in (
        "SELECT surface(c) FROM t",
        "SELECT other.surface(c) FROM t",
        "SELECT x.edit_distance(a)",
    ):
        with pytest.raises(SQLRefused, match="functions="):
            read_sql(sql, "postgresql", False, own)


def test_a_writing_tool_may_call_anything() -> None:
    assert read_sql("SELECT nextval('orders_id_seq')", "postgresql", write=True)


def test_no_word_of_the_language_is_a_function_that_reaches() -> None:
    reaching = (
        "pg_read",
        "pg_ls",
        "lo_",
        "dblink",
        "query_",
        "read_",
        "set_config",
        "sleep",
        "ts_stat",
    )
    assert not [name for name in ALLOWED | SYNTAX if name.startswith(reaching)]


PIECES = st.sampled_from(
    [
        "'",
        '"',
        "pg_sleep",
        "(",
        ")",
        "1",
        " ",
        "\n",
        "--",
        "/*",
        "*/",
        "$$",
        "$a$",
        "E",
        "U&",
        "\\",
        ",",
        "a",
        ".",
    ]
    + ["{#", "#}", "`", "[", "]", "\r", "\u00a0", "AS", "FROM", ";"]
)


@given(st.lists(PIECES, max_size=25), st.sampled_from(["postgresql", "sqlite", "duckdb"]))
def test_a_call_is_seen_wherever_it_is_hidden(pieces: list[str], engine: str) -> None:
    """Without quotes and comments, what passes calls nothing; with them, it may be text."""
    try:
        text = read_sql("SELECT " + "".join(pieces), engine).text
    except SQLRefused:
        return
    if not set(pieces) & {"'", '"', "--", "/*", "`", "["}:
        assert "pg_sleep(" not in text.lower().replace(" ", "")
