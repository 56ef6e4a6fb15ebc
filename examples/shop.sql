-- The database of text_to_sql.py.
CREATE TABLE items (name text PRIMARY KEY, price integer NOT NULL);
CREATE TABLE orders (id integer PRIMARY KEY, status text NOT NULL, city text NOT NULL);
INSERT INTO items VALUES ('lamp', 24), ('chair', 61), ('desk', 188), ('pen', 3);
INSERT INTO orders VALUES (1234, 'shipped', 'Porto'), (77, 'paid', 'Lima'), (4021, 'returned', 'Oslo');
