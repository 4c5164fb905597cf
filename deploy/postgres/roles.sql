-- The two PostgreSQL roles of a fleet, for psql 15 or later. Run it in the fleet's database, as a superuser, before the fleet's first start or
-- at any time later; it may be run again, which is how passwords are changed:
--
--   EMBERBOX_PASSWORD=… EMBERBOX_WORKER_PASSWORD=… psql -f roles.sql postgres://postgres@HOST/emberbox
--
-- | role            | for                           | may                                                         |
-- | --------------- | ----------------------------- | ----------------------------------------------------------- |
-- | emberbox        | frontends, managers, pollers  | all in this database: it owns functions, events and members |
-- | emberbox_worker | workers                       | be a member of the fleet: the schema emberbox_members       |
--
-- A worker's host runs the functions of strangers. With this role, whoever breaks out onto it can pose as a member or remove members, and
-- can neither read nor change a function, an event or the key that signs the addresses of packages. Workers start once another member has made the tables.
-- What it can do still is in SPECIFICATION.md, "A fleet", deviations.
\set ON_ERROR_STOP on
\getenv owner_password EMBERBOX_PASSWORD
\getenv worker_password EMBERBOX_WORKER_PASSWORD
\getenv worker_connections EMBERBOX_WORKER_CONNECTIONS

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['emberbox', 'emberbox_worker']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
\if :{?owner_password}
ALTER ROLE emberbox PASSWORD :'owner_password';
\endif
\if :{?worker_password}
ALTER ROLE emberbox_worker PASSWORD :'worker_password';
\endif

-- The schemas of what is not for workers are made by `emberbox`, and nobody else has a right to them.
ALTER DATABASE :"DBNAME" OWNER TO emberbox;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO emberbox_worker;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
-- The events are there. Until PostgreSQL 14 the schema is the superuser's, also in a database of `emberbox`.
GRANT USAGE, CREATE ON SCHEMA public TO emberbox;
-- A worker has two connections. They are bounded, so that one cannot take those of the others: what `max_connections` leaves beside the owner's
-- should be more than this.
\if :{?worker_connections}
\else
\set worker_connections 200
\endif
ALTER ROLE emberbox_worker CONNECTION LIMIT :worker_connections;

CREATE SCHEMA IF NOT EXISTS emberbox_members AUTHORIZATION emberbox;
GRANT USAGE ON SCHEMA emberbox_members TO emberbox_worker;
-- Those that there are, and those that `emberbox` makes later.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA emberbox_members TO emberbox_worker;
ALTER DEFAULT PRIVILEGES FOR ROLE emberbox IN SCHEMA emberbox_members
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO emberbox_worker;
-- Who writes down what the schema is says which programs may start. Where the table is not there yet, whoever makes it takes this away.
SELECT 'REVOKE INSERT, UPDATE, DELETE ON emberbox_members.migrations FROM emberbox_worker'
WHERE to_regclass('emberbox_members.migrations') IS NOT NULL \gexec
