"""The functions that a reading SQL tool allows: of values alone, of PostgreSQL, SQLite and DuckDB.

Named is what is allowed, since what else a server has, by itself, by its extensions and by its
later versions, reaches files, other servers, other sessions, locks, sequences and the server's own
state, or runs a text as SQL, while a transaction that only reads does not stop it.
"""

_AGGREGATES = """
any_value approx_count_distinct approx_quantile approx_top_k arbitrary arg_max arg_min argmax
argmin array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count count_if countif covar_pop
covar_samp entropy every favg first fsum geomean geometric_mean group_concat grouping grouping_id
histogram json_agg json_arrayagg json_group_array json_group_object json_object_agg json_objectagg
jsonb_agg jsonb_object_agg kurtosis kurtosis_pop last list listagg mad max max_by mean median min
min_by mode percentile_cont percentile_disc product quantile quantile_cont quantile_disc range_agg
range_intersect_agg regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx
regr_sxy regr_syy sem skewness stddev stddev_pop stddev_samp string_agg sum total var_pop var_samp
variance wavg weighted_avg xmlagg
"""

_WINDOWS = """
cume_dist dense_rank fill first_value lag last_value lead nth_value ntile percent_rank rank
rank_dense row_number
"""

_VALUES = """
cardinality cast coalesce collate columns convert element_at enum_first enum_last enum_range
exclude exists extract filter greatest if ifnull iif in_search_path isfinite isinf isnan least
likelihood likely map map_concat map_contains map_entries map_extract map_extract_value
map_from_entries map_keys map_values nullif num_nonnulls num_nulls nvl overlaps pg_typeof rename
replace row safe_cast struct struct_concat struct_extract struct_insert struct_keys struct_pack
struct_values subtype try try_cast typeof union_extract union_tag union_value unlikely variadic
"""

_NUMBERS = """
abs acos acosd acosh add asin asind asinh atan atan2 atan2d atand atanh bin bit_count cbrt ceil
ceiling cos cosd cosh cot cotd degrees div divide equi_width_bins even exp factorial fdiv floor
fmod gamma gcd get_bit get_byte greatest_common_divisor isodow lcm least_common_multiple lgamma ln
log log10 log2 min_scale mod multiply nextafter pi pow power radians rand random round round_even
roundbankers scale set_bit set_byte sign signbit sin sind sinh sqrt subtract tan tand tanh to_base
trim_scale trunc truncate width_bucket xor
"""

_TEXTS = """
array_to_tsvector ascii bar base64 bit_length bm25 btrim char char_length character_length chr
concat concat_ws contains convert_from convert_to damerau_levenshtein decode editdist3 encode
ends_with format format_bytes formatreadabledecimalsize formatreadablesize from_base64 from_hex
hamming hash hex highlight initcap instr is_normalized jaccard jaro_similarity
jaro_winkler_similarity lcase left left_grapheme len length length_grapheme levenshtein like
like_escape lower lpad ltrim matchinfo md5 mismatches nfc_normalize normalize numnode octet_length
offsets ord overlay parse_filename parse_ident phraseto_tsquery plainto_tsquery position prefix
printf querytree quote quote_ident quote_literal quote_nullable regexp_count regexp_escape
regexp_extract regexp_extract_all regexp_full_match regexp_instr regexp_like regexp_match
regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat
reverse right right_grapheme rpad rtrim setweight sha1 sha224 sha256 sha384 sha512 snippet soundex
split split_part starts_with str_split str_split_regex string_split string_split_regex
string_to_array string_to_table strip strip_accents strlen strpos substr substring
substring_grapheme suffix to_ascii to_base64 to_binary to_char to_hex to_number to_tsquery
to_tsvector translate trim ts_delete ts_filter ts_headline ts_rank ts_rank_cd tsquery_phrase
tsvector_to_array ucase unbin unhex unicode unistr upper url_decode url_encode websearch_to_tsquery
zeroblob
"""

_TIMES = """
age ago century clock_timestamp current_date current_localtime current_localtimestamp current_time
current_timestamp date date_add date_bin date_diff date_part date_sub date_trunc datediff datepart
datesub datetime datetrunc day dayname dayofmonth dayofweek dayofyear days_in_month decade epoch
epoch_ms epoch_ns epoch_us era get_current_timestamp hour interval isoyear julian julianday
justify_days justify_hours justify_interval last_day localtime localtimestamp make_date
make_interval make_time make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz
microsecond millennium millisecond minute month monthname nanosecond now quarter second
statement_timestamp strftime strptime time time_bucket timediff timeofday timestamp timestamptz
timetz timezone timezone_hour timezone_minute to_centuries to_date to_days to_decades to_hours
to_microseconds to_millennia to_milliseconds to_minutes to_months to_quarters to_seconds
to_timestamp to_weeks to_years today transaction_timestamp try_strptime unixepoch week weekday
weekofyear year yearweek
"""

_JSON = """
array_to_json from_json from_json_strict json json_array json_array_elements
json_array_elements_text json_array_length json_build_array json_build_object json_contains
json_each json_each_text json_exists json_extract json_extract_path json_extract_path_text
json_extract_string json_insert json_keys json_merge_patch json_object json_object_keys json_patch
json_populate_record json_populate_recordset json_pretty json_query json_quote json_remove
json_replace json_scalar json_serialize json_set json_strip_nulls json_structure json_table
json_to_record json_to_recordset json_transform json_transform_strict json_tree json_type
json_typeof json_valid json_value jsonb jsonb_array_elements jsonb_array_elements_text
jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys
jsonb_path_exists jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first
jsonb_populate_record jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax
jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_typeof row_to_json to_json to_jsonb
"""

_LISTS = """
abbrev aggregate apply area array array_aggr array_aggregate array_append array_apply array_cat
array_concat array_contains array_cosine_distance array_cosine_similarity array_cross_product
array_dims array_distance array_distinct array_extract array_fill array_filter array_has
array_has_all array_has_any array_indexof array_inner_product array_intersect array_length
array_lower array_ndims array_pop_back array_pop_front array_position array_positions array_prepend
array_push_back array_push_front array_reduce array_remove array_replace array_reverse
array_reverse_sort array_select array_slice array_sort array_to_string array_transform array_unique
array_upper array_value array_where array_zip box broadcast center circle datemultirange daterange
daterange_merge diagonal diameter family flatten gen_random_uuid generate_series
generate_subscripts height host hostmask inet_merge inet_same_family int4multirange int4range
int8multirange int8range isclosed isempty isopen list_aggr list_aggregate list_any_value
list_append list_apply list_avg list_cat list_concat list_contains list_cosine_distance
list_cosine_similarity list_count list_distance list_distinct list_dot_product list_element
list_extract list_filter list_first list_has list_has_all list_has_any list_indexof
list_inner_product list_intersect list_last list_max list_median list_min list_mode list_pack
list_position list_prepend list_reduce list_resize list_reverse list_reverse_sort list_select
list_slice list_sort list_string_agg list_sum list_transform list_unique list_value list_where
list_zip lower_inc lower_inf lseg masklen multirange netmask network npoints nummultirange numrange
path point polygon radius range range_merge reduce slope trim_array tsmultirange tsrange
tstzmultirange tstzrange unnest unpivot_list upper_inc upper_inf uuid uuid_extract_timestamp
uuid_extract_version uuidv4 uuidv7 width
"""

_CATALOG = """
col_description current_catalog current_database current_role current_schema current_schemas
current_user duckdb_columns duckdb_constraints duckdb_indexes duckdb_schemas duckdb_tables
duckdb_types duckdb_views format_type has_any_column_privilege has_column_privilege
has_schema_privilege has_table_privilege obj_description pg_column_size pg_database_size
pg_get_constraintdef pg_get_expr pg_get_indexdef pg_get_serial_sequence pg_get_viewdef
pg_indexes_size pg_relation_size pg_size_bytes pg_size_pretty pg_table_is_visible pg_table_size
pg_total_relation_size session_user sqlite_version to_regclass to_regtype user version
"""

_KINDS = (_AGGREGATES, _WINDOWS, _VALUES, _NUMBERS, _TEXTS, _TIMES, _JSON, _LISTS, _CATALOG)
ALLOWED = frozenset(name for kind in _KINDS for name in kind.split())

# What stands before a parenthesis and is no function: key words, and types with a size.
_SYNTAX = """
all and anti any array as asc asof bernoulli between bigint bit blob boolean bpchar by case char
character cross cube dec decimal desc distinct double else end enum escape except exclude fetch
filter float for from full glob group halfvec having ilike in inner int int4 int8 integer intersect
into is isnull join lateral left like limit list match materialized national natural nchar not
notnull null numeric nvarchar of offset on only or order outer over partition pivot positional
preceding precision qualify range real recursive regexp replace reservoir return returning right
rollup row rows sample select semi set sets similar smallint some string system table tablesample
text then to top union unpivot using values varbit varchar varying vector when where window with
within xor
"""
SYNTAX = frozenset(_SYNTAX.split())
