create or replace function create_topic_view(topic_id int4) returns void language sql volatile set search_path from current begin atomic end;
